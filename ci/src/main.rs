//! The tasks behind `cargo ci`.

fn main() {}
