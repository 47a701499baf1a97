# Fails unless the shared library exports exactly what coop.h declares, and the command
# all of it: C modules that a script loads find it in the one or the other.
#     cmake -DNM=... -DLIBRARY=libcoop.so -DCOMMAND=coop -DHEADER=coop.h -P exports.cmake

cmake_policy(VERSION 3.20)

file(STRINGS ${HEADER} lines REGEX "^COOP_API ")
foreach(line IN LISTS lines)
  string(REGEX MATCH "([a-z_]+)\\(" name ${line})
  list(APPEND declared ${CMAKE_MATCH_1})
endforeach()

list(SORT declared)

# The names that a file exports, without those that are reserved.
function(exports result file)
  execute_process(COMMAND ${NM} -D --defined-only ${file}
    OUTPUT_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^ \n]+\n" names "${text}")
  list(TRANSFORM names STRIP)
  list(FILTER names EXCLUDE REGEX "^_")
  list(SORT names)
  set(${result} ${names} PARENT_SCOPE)
endfunction()

exports(exported ${LIBRARY})
if(NOT exported STREQUAL declared)
  message(SEND_ERROR "${LIBRARY} exports ${exported}, and not ${declared}")
endif()

exports(exported ${COMMAND})
list(REMOVE_ITEM declared ${exported})
if(declared)
  message(SEND_ERROR "${COMMAND} does not export ${declared}")
endif()
