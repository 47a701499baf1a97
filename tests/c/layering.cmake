# Fails when an archive refers to a symbol that its layer must not know.
#     cmake -DNM=... -DCORE=libcoop_core.a -DUV=libcoop_uv.a -P layering.cmake

cmake_policy(VERSION 3.20)

# The symbols of a kind (defined, undefined) in an archive.
function(symbols result kind archive)
  execute_process(COMMAND ${NM} --${kind}-only ${archive}
    OUTPUT_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
  set(${result} "${text}" PARENT_SCOPE)
endfunction()

# It defines 'known', lest an empty archive pass, and refers to nothing that matches 'strangers'.
function(check archive known strangers)
  symbols(defined defined ${archive})
  if(NOT defined MATCHES " T ${known}\n")
    message(SEND_ERROR "${archive} does not define ${known}")
  endif()
  symbols(undefined undefined ${archive})
  string(REGEX MATCHALL " U (${strangers})[^\n]*" found "${undefined}")
  if(found)
    message(SEND_ERROR "${archive} refers to${found}")
  endif()
endfunction()

check(${CORE} coop__sched_tick "lua|uv_")
check(${CORE} coop__timers_add "lua|uv_")
check(${UV} coop__loop_once "lua")
