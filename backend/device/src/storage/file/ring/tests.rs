use tempfile::NamedTempFile;

use super::*;
use crate::storage::image::Use;

/// Goal: a disk that has nothing to do is given the first request of a batch at once.
/// Method: four requests that have ended unseen, then a batch, and what of it waits.
#[test]
fn the_first_of_a_batch_does_not_wait() {
    let file = NamedTempFile::new().expect("a file");
    file.as_file().set_len(4096).expect("the image");
    let image = Image::open(file.path(), Use { read_only: false, direct: false });
    let image = Arc::new(image.expect("an image"));
    let mut channel = RingChannel::new(image, false).expect("a ring");
    let mut waiting_after = |tokens: std::ops::Range<u64>| -> Vec<u32> {
        let waiting = tokens
            .clone()
            .map(|token| {
                assert!(matches!(
                    Channel::submit(&mut channel, token, Io::Flush),
                    Submitted::Pending
                ));
                channel.unsubmitted
            })
            .collect();
        channel.flush_submissions();
        channel.ring.submit_and_wait(tokens.end as usize).expect("ended");
        waiting
    };
    waiting_after(0..4);
    assert_eq!(waiting_after(4..12), [0, 0, 1, 0, 1, 2, 3, 0]);
    let mut ended = Vec::new();
    channel.reap(&mut |token, result| ended.push((token, result)));
    ended.sort_by_key(|(token, _)| *token);
    assert_eq!(ended, (0..12).map(|token| (token, Ok(()))).collect::<Vec<_>>());
}
