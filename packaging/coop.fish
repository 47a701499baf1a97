# Completion of coop(1) for fish.
complete -c coop -s e -x -d 'Execute a string'
complete -c coop -s l -x -d 'Require a module'
complete -c coop -s i -d 'Prompt for lines after the script'
complete -c coop -s v -d 'Print the version'
complete -c coop -s E -d 'Ignore environment variables'
complete -c coop -s W -d 'Turn warnings on'
complete -c coop -s h -l help -d 'Print the options'
complete -c coop -k -xa '(__fish_complete_suffix .lua)'
