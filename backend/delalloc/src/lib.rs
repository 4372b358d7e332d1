//! delalloc.

#![forbid(unsafe_code)]
