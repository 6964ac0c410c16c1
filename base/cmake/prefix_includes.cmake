# At installation: the headers below FOLDER include each other as <kvcal/formats/codebook.h>, where the source says
# "formats/codebook.h": another project's include path then needs one folder, in which nothing but kvcal/ lies.
file(GLOB_RECURSE headers "${FOLDER}/kvcal/*.h")
foreach(header IN LISTS headers)
  file(READ "${header}" text)
  string(REGEX REPLACE "#include \"((base|kmeans|formats|cuda)/[^\"]+)\"" "#include <kvcal/\\1>" prefixed "${text}")
  if(NOT prefixed STREQUAL text)
    file(WRITE "${header}" "${prefixed}")
  endif()
endforeach()
