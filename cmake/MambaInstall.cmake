# The installed package: the static library with its public headers, the program, and a config file that
# finds the library's dependencies again, so that a consumer writes find_package(mamba) and links
# mamba::mamba.
include(CMakePackageConfigHelpers)
set(MAMBA_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/mamba)

install(TARGETS mamba EXPORT mamba-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET mamba-cpp)
  install(TARGETS mamba-cpp RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
if(TARGET mamba-cpp AND NOT CMAKE_CROSSCOMPILING)
  set(share ${PROJECT_BINARY_DIR}/share)
  install(FILES ${share}/mamba-cpp.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
  install(FILES ${share}/mamba-cpp.bash RENAME mamba-cpp
    DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
  install(FILES ${share}/_mamba-cpp DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
  install(FILES ${share}/mamba-cpp.fish
    DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
endif()
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/mamba DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.h")
install(FILES ${PROJECT_BINARY_DIR}/include/mamba/version.h
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/mamba)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

install(EXPORT mamba-targets NAMESPACE mamba:: DESTINATION ${MAMBA_CMAKE_DIR})
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/mamba-config.cmake.in
  ${PROJECT_BINARY_DIR}/mamba-config.cmake INSTALL_DESTINATION ${MAMBA_CMAKE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/mamba-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/mamba-config.cmake
  ${PROJECT_BINARY_DIR}/mamba-config-version.cmake
  ${PROJECT_SOURCE_DIR}/cmake/FindOneDNN.cmake ${PROJECT_SOURCE_DIR}/cmake/FindPCRE2.cmake
  ${PROJECT_SOURCE_DIR}/cmake/FindUtf8proc.cmake DESTINATION ${MAMBA_CMAKE_DIR})
