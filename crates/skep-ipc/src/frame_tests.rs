//! Frames of every size arrive complete; anything else is refused.

use std::{os::unix::net::UnixStream, thread, time::Duration};

use super::*;

const TURNS: Framing = Framing {
    max_frame_bytes: 16 << 20,
    max_descriptors: 2,
    takes_turns: true,
};

const EXACT: Framing = Framing {
    max_frame_bytes: 2 << 20,
    max_descriptors: 1,
    takes_turns: false,
};

fn pair(framing: Framing) -> (FrameStream<UnixStream>, FrameStream<UnixStream>) {
    let (one, other) = UnixStream::pair().expect("pair");
    (
        FrameStream::new(one, framing),
        FrameStream::new(other, framing),
    )
}

fn write(socket: &FrameStream<UnixStream>, bytes: &[u8]) {
    rustix::io::write(socket.socket(), bytes).expect("write");
}

#[test]
fn frames_of_every_size_arrive_complete_with_their_descriptors() {
    let lengths = [
        0,
        1,
        READ_BYTES - HEADER_BYTES,
        READ_BYTES,
        STEP_BYTES + 1,
        1 << 20,
    ];
    for framing in [TURNS, EXACT] {
        let (sender, receiver) = pair(framing);
        let thread = thread::spawn(move || {
            let mut buffer = Vec::new();
            for length in lengths {
                let descriptors = [sender.socket().as_fd()];
                sender
                    .send(&vec![7; length], &descriptors[..length % 2])
                    .expect("send");
                if framing.takes_turns {
                    sender.receive(&mut buffer, None).expect("receive");
                }
            }
        });
        let mut buffer = Vec::new();
        for length in lengths {
            let received = receiver.receive_with_descriptors(&mut buffer);
            let (body, descriptors) = received.expect("receive").expect("open");
            assert_eq!(body.len(), length);
            assert!(body.iter().all(|&byte| byte == 7));
            assert_eq!(descriptors.len(), length % 2);
            if framing.takes_turns {
                receiver.send(&[], &[]).expect("send");
            }
        }
        thread.join().expect("sender");
        let end = receiver.receive(&mut buffer, None).expect("receive");
        assert!(end.is_none());
    }
}

#[test]
fn malformed_frames_are_refused() {
    for (framing, bytes, text) in [
        (TURNS, &[255, 255, 255, 255][..], "16777216"),
        (EXACT, &[255, 255, 255, 255], "2097152"),
        (TURNS, &[1, 0, 0, 0, 9, 1], "another frame follows"),
        (TURNS, &[2, 0, 0, 0, 9], "ended within a frame"),
        (EXACT, &[2, 0, 0, 0, 9], "ended within a frame"),
        (EXACT, &[2, 0], "ended within a frame"),
    ] {
        let (sender, receiver) = pair(framing);
        write(&sender, bytes);
        drop(sender);
        let mut buffer = Vec::new();
        let error = receiver.receive(&mut buffer, None);
        let error = error.expect_err("refused").to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn a_frame_that_is_too_long_is_not_sent() {
    let (sender, receiver) = pair(EXACT);
    let error = sender.send(&vec![0; EXACT.max_frame_bytes + 1], &[]);
    assert!(
        matches!(error, Err(FrameError::Unsendable { .. })),
        "{error:?}"
    );
    drop(sender);
    let mut buffer = Vec::new();
    let end = receiver.receive(&mut buffer, None).expect("receive");
    assert!(end.is_none());
}

#[test]
fn too_many_descriptors_are_refused() {
    let (sender, receiver) = pair(EXACT);
    let descriptors = [sender.socket().as_fd(); 2];
    sender.send(&[1], &descriptors).expect("send");
    let mut buffer = Vec::new();
    let error = receiver.receive_with_descriptors(&mut buffer);
    assert!(matches!(error, Err(FrameError::Descriptors)), "{error:?}");
}

#[test]
fn a_frame_that_is_not_complete_at_the_deadline_is_an_error() {
    let (sender, receiver) = pair(TURNS);
    let mut buffer = Vec::new();
    sender.send(&[7], &[]).expect("send");
    // What has arrived is read, however late.
    let body = receiver.receive(&mut buffer, Some(Instant::now()));
    assert_eq!(body.expect("receive"), Some(&[7][..]));
    for part in [&[][..], &[9, 0]] {
        write(&sender, part);
        let soon = Instant::now() + Duration::from_millis(2);
        let error = receiver.receive(&mut buffer, Some(soon));
        assert!(matches!(error, Err(FrameError::TimedOut)), "{error:?}");
    }
}

#[test]
fn a_read_that_takes_longer_than_the_timeout_is_an_error() {
    let (_sender, receiver) = pair(EXACT);
    let timeout = Some(Duration::from_millis(2));
    receiver.set_timeouts(timeout, timeout).expect("timeouts");
    let mut buffer = Vec::new();
    let error = receiver.receive(&mut buffer, None);
    assert!(matches!(error, Err(FrameError::TimedOut)), "{error:?}");
}
