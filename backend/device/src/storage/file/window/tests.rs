use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::segments::Snapshot;
use crate::storage::image::Use;

const BYTES: u64 = 1 << 20;

/// Memory for what is read.
struct Guest(Snapshot);

impl Guest {
    fn new() -> Guest {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), BYTES as usize)]);
        Guest(Snapshot::new(Arc::new(memory.expect("memory"))))
    }

    /// What a read through the window brings; `None` if it does not read.
    fn read(&self, window: &mut Window, offset: u64, len: u64) -> Option<Vec<u8>> {
        let mut to = Segments::guest(&self.0);
        to.push(GuestAddress(7), len as u32).expect("inside");
        window.read(offset, &to).then(|| {
            let mut bytes = vec![0; len as usize];
            self.0.memory().read_slice(&mut bytes, GuestAddress(7)).expect("inside");
            bytes
        })
    }
}

/// The byte at an offset of the image at first.
fn byte(offset: u64) -> u8 {
    (offset % 251) as u8
}

fn image() -> (NamedTempFile, Image) {
    let file = NamedTempFile::new().expect("a file");
    let bytes: Vec<u8> = (0..BYTES).map(byte).collect();
    file.as_file().write_all_at(&bytes, 0).expect("the image");
    let image = Image::open(file.path(), Use { read_only: false, direct: false });
    (file, image.expect("an image"))
}

/// Says twice that the range was found.
fn known(window: &mut Window, offset: u64, len: u64) {
    window.found(offset, len);
    window.found(offset, len);
}

#[test]
fn what_was_found_twice_is_read() {
    let (_file, image) = image();
    let (guest, mut window) = (Guest::new(), Window::new(&image));
    assert_eq!(guest.read(&mut window, 8192, 4096), None);
    window.found(8192, 8192);
    assert_eq!(guest.read(&mut window, 8192, 4096), None, "it may be read only once");
    window.found(8192, 8192);
    for (offset, len) in [(8192, 8192), (8192, 512), (8192 + 512, 4096), (16384 - 512, 512)] {
        let want: Vec<u8> = (offset..offset + len).map(byte).collect();
        assert_eq!(guest.read(&mut window, offset, len), Some(want), "{len} at {offset}");
    }
    assert_eq!(guest.read(&mut window, 8192 - 512, 1024), None, "half of it was not found");
    assert_eq!(guest.read(&mut window, 16384 - 512, 1024), None);
}

#[test]
fn what_is_written_is_read() {
    let (file, image) = image();
    let (guest, mut window) = (Guest::new(), Window::new(&image));
    known(&mut window, 0, 4096);
    image.write_at(512, &[0xee; 512]).expect("written");
    assert_eq!(guest.read(&mut window, 512, 512), Some(vec![0xee; 512]));
    image.write_zeroes(0, 4096, true, false).expect("zeroes");
    assert_eq!(guest.read(&mut window, 0, 4096), Some(vec![0; 4096]));
    file.as_file().write_all_at(&[7; 4096], 0).expect("written");
    assert_eq!(guest.read(&mut window, 0, 4096), Some(vec![7; 4096]));
}

/// Goal: what is not there is left to the system call, which knows why, now and later.
#[test]
fn what_is_gone_is_not_read() {
    let (file, image) = image();
    let (guest, mut window) = (Guest::new(), Window::new(&image));
    known(&mut window, 0, BYTES / 4);
    assert!(guest.read(&mut window, 4096, 8192).is_some());
    file.as_file().set_len(8192).expect("shrinks");
    assert_eq!(guest.read(&mut window, 4096, 8192), None);
    assert_eq!(guest.read(&mut window, 0, 4096), None, "the window is closed");
    known(&mut window, 0, 4096);
    assert_eq!(guest.read(&mut window, 0, 4096), None, "and stays so");
}

#[test]
fn nothing_beyond_the_end() {
    let (_file, image) = image();
    let (guest, mut window) = (Guest::new(), Window::new(&image));
    for (offset, len) in [(BYTES, 4096), (BYTES - 512, 1024), (u64::MAX - 511, 512), (0, 0)] {
        known(&mut window, offset, len);
        assert_eq!(guest.read(&mut window, offset, len), None, "{len} at {offset}");
        window.soon(offset, len);
    }
}

/// Goal: a thread that had to wait for what it took for present stops taking it for that.
/// Method: the faults are made to differ; the next look comes after at most [`LOOK`] reads.
#[test]
fn a_read_that_waited_closes_it_for_a_while() {
    let (_file, image) = image();
    let (guest, mut window) = (Guest::new(), Window::new(&image));
    known(&mut window, 0, 4096);
    window.faults = Some(-1);
    let reads = (0..LOOK + REST).filter(|_| guest.read(&mut window, 0, 4096).is_some()).count();
    assert_eq!(reads as u32, LOOK);
    assert_eq!(guest.read(&mut window, 0, 4096), None, "to be found anew");
    known(&mut window, 0, 4096);
    assert!(guest.read(&mut window, 0, 4096).is_some());
    window.faults = Some(-1);
    while window.rest == 0 {
        assert!(guest.read(&mut window, 0, 4096).is_some());
    }
    assert!(window.rest > 3 * REST / 2, "{}: for longer than before", window.rest);
}
