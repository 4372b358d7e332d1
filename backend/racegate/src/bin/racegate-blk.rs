//! The vhost-user-blk daemon.

fn main() {}
