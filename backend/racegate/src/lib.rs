//! racegate.
