//! Init of the guest.

fn main() {}
