# Completion of coop(1) for bash.
_coop() {
  local current=$2 previous=$3 i
  COMPREPLY=()
  case $previous in
    -e | -l) return ;;
  esac
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${COMP_WORDS[i]} in
      -e | -l) ((i++)) ;;
      -?*) ;;
      *) # the script: what follows are its arguments
        compopt -o default
        return
        ;;
    esac
  done
  if [[ $current == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W '-e -i -l -v -E -W -h --help --' -- "$current")
  else
    compopt -o filenames
    mapfile -t COMPREPLY < <(compgen -f -X '!*.lua' -- "$current"; compgen -d -- "$current")
  fi
}
complete -F _coop coop
