# Writes the public module 'coop.NAME' of the file PART to OUTPUT, as require finds it beside
# coop itself: what runs is the part in the library, whatever the version of this file is.
file(READ ${PART} text)
file(WRITE ${OUTPUT} "\
-- What runs is the part of coop that has this name; the text below is for readers and editors.
do
  require 'coop'
  return package.preload['coop.${NAME}']('coop.${NAME}')
end

${text}")
