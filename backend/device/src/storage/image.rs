//! Image.
