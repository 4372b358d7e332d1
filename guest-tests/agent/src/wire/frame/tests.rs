use proptest::prelude::*;

use super::*;
use crate::wire::{ToGuest, ToHost};

#[test]
fn a_frame_is_laid_out_as_documented() {
    let mut bytes = Vec::new();
    encode(0x0403_0201, b"{}", &mut bytes).unwrap();
    assert_eq!(bytes.len(), 512);
    assert_eq!(&bytes[..18], b"RGLK\x02\0\0\0\x01\x02\x03\x04\x02\0\0\0{}");
    assert!(bytes[18..].iter().all(|&b| b == 0));
}

#[test]
fn an_empty_frame_carries_no_message() {
    let mut bytes = Vec::new();
    encode_empty(7, &mut bytes);
    assert!(matches!(decode_message::<ToGuest>(&bytes), Ok(None)));
}

#[test]
fn mistakes_are_told_apart() {
    let mut good = Vec::new();
    encode(1, b"[]", &mut good).unwrap();
    assert!(matches!(decode(&good[..15]), Err(FrameError::Short { got: 15 })));
    let mut bytes = good.clone();
    bytes[0] = b'X';
    assert!(matches!(decode(&bytes), Err(FrameError::Magic { .. })));
    let mut bytes = good.clone();
    bytes[4] = 9;
    assert!(matches!(decode(&bytes), Err(FrameError::Version { version: 9, .. })));
    let mut bytes = good.clone();
    bytes[6] = 1;
    assert!(matches!(decode(&bytes), Err(FrameError::Version { reserved: 1, .. })));
    let mut bytes = good.clone();
    bytes[12..16].copy_from_slice(&497u32.to_le_bytes());
    assert!(matches!(decode(&bytes), Err(FrameError::Length { length: 497, room: 496, .. })));
    assert!(matches!(decode_message::<ToHost>(&good), Err(FrameError::Message { seq: 1, .. })));
    let long = vec![b' '; MAX_PAYLOAD + 1];
    assert!(matches!(encode(1, &long, &mut bytes), Err(FrameError::TooLong { .. })));
}

#[test]
fn a_length_above_the_limit_is_refused_even_if_the_bytes_are_there() {
    let mut bytes = vec![0; 2 * MAX_FRAME];
    let mut head = Vec::new();
    encode(3, b"", &mut head).unwrap();
    bytes[..16].copy_from_slice(&head[..16]);
    bytes[12..16].copy_from_slice(&(MAX_PAYLOAD as u32 + 1).to_le_bytes());
    assert!(matches!(decode(&bytes), Err(FrameError::Length { .. })));
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(seq: u32, payload in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut bytes = Vec::new();
        encode(seq, &payload, &mut bytes).unwrap();
        prop_assert_eq!(bytes.len() % 512, 0);
        prop_assert_eq!(decode(&bytes).unwrap(), Frame { seq, payload: &payload });
    }

    #[test]
    fn any_bytes_give_a_frame_within_them_or_an_error(
        mut bytes in prop::collection::vec(any::<u8>(), 0..600),
        genuine: bool,
    ) {
        if genuine && bytes.len() >= 8 {
            bytes[..8].copy_from_slice(b"RGLK\x02\0\0\0");
        }
        if let Ok(frame) = decode(&bytes) {
            prop_assert!(frame.payload.len() + HEADER_BYTES <= bytes.len());
            prop_assert_eq!(&bytes[16..16 + frame.payload.len()], frame.payload);
        }
        let _ = decode_message::<ToHost>(&bytes);
        let _ = decode_message::<ToGuest>(&bytes);
    }

    #[test]
    fn one_flipped_bit_of_the_header_is_never_taken_for_another_message(bit in 0usize..128) {
        let mut good = Vec::new();
        encode_message(5, &ToGuest::Ping { id: 77 }, &mut good).unwrap();
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        // The receiver notices a changed number; a changed length breaks the JSON (it is cut off,
        // or zeroes of the padding follow it); the rest the header refuses by itself.
        let in_seq = (64..96).contains(&bit);
        prop_assert_eq!(matches!(decode_message::<ToGuest>(&bytes), Ok(Some(_))), in_seq);
    }
}
