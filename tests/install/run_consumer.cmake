# Installs the build into an empty prefix, then configures, builds and runs the consumer against that alone.
file(REMOVE_RECURSE ${WORK})
function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix)
run(${CMAKE_COMMAND} -S ${CONSUMER} -B ${WORK}/build -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${COMPILER}
    -Dkvcal_DIR=${WORK}/prefix/${LIBDIR}/cmake/kvcal)
run(${CMAKE_COMMAND} --build ${WORK}/build)
run(${WORK}/build/consumer ${WORK}/made.h5)

# The installed program needs nothing of the folder that it was built in.
if(EXISTS ${WORK}/prefix/bin/kvcal)
  run(${WORK}/prefix/bin/kvcal --version)
  execute_process(COMMAND ldd ${WORK}/prefix/bin/kvcal OUTPUT_VARIABLE libraries COMMAND_ERROR_IS_FATAL ANY)
  if(libraries MATCHES "/[.]deps/|not found")
    message(FATAL_ERROR "the installed program finds libraries where it was built:\n${libraries}")
  endif()
endif()

# Who only reads codebooks links nothing of the tokenizers.
execute_process(COMMAND ${CMAKE_COMMAND} --build ${WORK}/build --clean-first --verbose OUTPUT_VARIABLE commands
                COMMAND_ERROR_IS_FATAL ANY)
if(NOT commands MATCHES "libkvcal_formats[.]a")
  message(FATAL_ERROR "the commands of the build do not show what is linked:\n${commands}")
endif()
foreach(library libonig utf8proc sentencepiece libkvcal_tokenizer)
  if(commands MATCHES "${library}")
    message(FATAL_ERROR "the consumer links ${library}:\n${commands}")
  endif()
endforeach()
