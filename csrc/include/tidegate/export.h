// The symbols that a shared library exports; a static library exports none. C and C++.
#ifndef TIDEGATE_EXPORT_H_
#define TIDEGATE_EXPORT_H_

// The CMake package defines TIDEGATE_SHARED for the shared library and for targets that link it. A
// program that links the shared library without this definition also works.
#if defined(TIDEGATE_SHARED)
#define TIDEGATE_EXPORT __attribute__((visibility("default")))
#define TIDEGATE_HIDDEN __attribute__((visibility("hidden")))
#else
#define TIDEGATE_EXPORT
#define TIDEGATE_HIDDEN
#endif

#endif  // TIDEGATE_EXPORT_H_
