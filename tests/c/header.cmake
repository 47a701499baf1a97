# Compiles include/coop.h alone, as C11 and as C++17, every warning an error.
#     cmake -DCC=... -DHEADER=... -DINCLUDES=a;b -P header.cmake
cmake_policy(VERSION 3.20)
list(REMOVE_ITEM INCLUDES "")
list(TRANSFORM INCLUDES PREPEND -isystem)
set(warnings -Wall -Wextra -Wpedantic -Werror)

# libuv's header asks for POSIX.
function(compile language standard)
  execute_process(RESULT_VARIABLE status
    COMMAND ${CC} -fsyntax-only ${warnings} -D_POSIX_C_SOURCE=200809L ${INCLUDES}
      -std=${standard} -x ${language} ${HEADER})
  if(NOT status EQUAL 0)
    message(SEND_ERROR "${HEADER} does not stand alone as ${standard}")
  endif()
endfunction()

compile(c c11)
compile(c++ c++17)
