# find_package(lib_mlx) and target_link_libraries(app lib_mlx::lib_mlx). Moves with the folder it lies in.
get_filename_component(lib_mlx_PREFIX "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if(NOT TARGET lib_mlx::lib_mlx)
  add_library(lib_mlx::lib_mlx SHARED IMPORTED)
  set_target_properties(lib_mlx::lib_mlx PROPERTIES
    IMPORTED_LOCATION "${lib_mlx_PREFIX}/liblib_mlx${CMAKE_SHARED_LIBRARY_SUFFIX}"
    INTERFACE_INCLUDE_DIRECTORIES "${lib_mlx_PREFIX}/include")
  if(NOT APPLE)
    set_target_properties(lib_mlx::lib_mlx PROPERTIES IMPORTED_SONAME "liblib_mlx.so.@ABI@")
  endif()
endif()
