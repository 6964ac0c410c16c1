# kvcal::oniguruma, kvcal::utf8proc and kvcal::sentencepiece: what the tokenizers stand on. The installed package includes this file, too.
foreach(entry "oniguruma onig oniguruma.h" "utf8proc utf8proc utf8proc.h" "sentencepiece sentencepiece sentencepiece_processor.h")
  separate_arguments(entry)
  list(GET entry 0 name)
  list(GET entry 1 library)
  list(GET entry 2 header)
  if(TARGET kvcal::${name})
    continue()
  endif()
  find_library(KVCAL_${name}_LIBRARY ${library})
  find_path(KVCAL_${name}_INCLUDE ${header})
  if(NOT KVCAL_${name}_LIBRARY OR NOT KVCAL_${name}_INCLUDE)
    message(FATAL_ERROR "lib${library} and ${header} are needed; ./setup.sh installs them (Debian: libonig-dev, "
                        "libutf8proc-dev, libsentencepiece-dev)")
  endif()
  add_library(kvcal::${name} UNKNOWN IMPORTED GLOBAL)
  set_target_properties(kvcal::${name} PROPERTIES
    IMPORTED_LOCATION ${KVCAL_${name}_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${KVCAL_${name}_INCLUDE})
endforeach()
