//! The devices from outside: real sockets, real shared memory, clients not written here.
//!
//! Goal: whatever a front-end does, data is right, and the device serves the next one.
//! Method: each test starts a device in this process and talks to it as a front-end.

mod alone;
mod client;
mod front_ends;
mod hostile;
mod junk;
mod link;
mod parked;
mod pmem;
mod raw;
mod semantics;
mod served;
mod storage;
mod storages;
mod stores;
mod survival;
mod virtio_driver_client;
