//! Workers that break the protocol, each played by a thread.

use std::{os::unix::net::UnixStream, thread};

use skep_backend::{BackendError, ErrorKind, OutputSlot};
use skep_tensor::{RunBound, Tensor, TensorView};
use skep_types::{DataType, Shape};

use super::{Channel, Conversation, MAX_ROOMS, RunFailure, SharedTensor};
use crate::{
    memory::MAX_BYTES,
    message::{FromWorker, ToWorker},
};

/// The worker's side of a test.
struct Peer(Channel<UnixStream>);

impl Peer {
    /// The next request and the memory that came with it.
    fn hear(&mut self) -> (ToWorker, Option<std::fs::File>) {
        let received = self.0.receive_with_descriptors().expect("receive");
        let (message, descriptors) = received.expect("open");
        let file = descriptors.into_iter().next().map(Into::into);
        (ToWorker::decode(message).expect("request"), file)
    }

    fn say(&mut self, answer: &FromWorker) {
        let said = self.0.send(|writer| answer.encode(writer), &[]);
        said.expect("send");
    }

    /// Asks for room and gets memory.
    fn room(&mut self, bytes: usize) -> (usize, std::fs::File) {
        self.say(&FromWorker::NeedRoom(bytes));
        let (ToWorker::Room(length), Some(memory)) = self.hear() else {
            panic!("room was asked for");
        };
        (length, memory)
    }
}

/// Runs a batch of one INT16 [3] for one output against the worker `play`.
fn run(play: impl FnOnce(Peer) + Send + 'static) -> Result<Tensor, RunFailure> {
    let mut outputs = [OutputSlot::new(0)];
    run_into(&mut outputs, play)?;
    let [output] = outputs;
    Ok(output.into_tensor().expect("output"))
}

fn run_into(
    outputs: &mut [OutputSlot],
    play: impl FnOnce(Peer) + Send + 'static,
) -> Result<(), RunFailure> {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let peer = Peer(Channel::new(theirs));
    let mut conversation = Conversation::new(Channel::new(ours.into()), RunBound::default());
    let thread = thread::spawn(move || play(peer));
    let shape = Shape::new(&[3]).expect("shape");
    let input = TensorView::new(DataType::Int16, &shape, &[1, 0, 2, 0, 3, 0]).expect("view");
    let outcome = conversation.run(&[input], outputs);
    drop(conversation);
    thread.join().expect("the worker's part");
    outcome.map(|_| ())
}

fn ran(outputs: Vec<SharedTensor>) -> FromWorker {
    let memory = None;
    FromWorker::Ran { outputs, memory }
}

fn place(datatype: DataType, dims: &[usize], offset: usize, length: usize) -> SharedTensor {
    SharedTensor {
        datatype,
        shape: Shape::new(dims).expect("shape"),
        offset,
        length,
    }
}

fn is_wrong<T>(outcome: &Result<T, RunFailure>, what: &str) -> bool {
    matches!(outcome, Err(RunFailure::Wrong(why)) if why == what)
}

#[test]
fn inputs_go_and_outputs_come_through_shared_memory() {
    use std::os::unix::fs::FileExt;
    let output = run(|mut peer| {
        let (ToWorker::Run { inputs, wanted, .. }, Some(memory)) = peer.hear() else {
            panic!("a first batch comes with memory");
        };
        assert_eq!((inputs.len(), &wanted[..]), (1, &[0][..]));
        let mut bytes = vec![0; inputs[0].length];
        let offset = u64::try_from(inputs[0].offset).expect("offset");
        memory.read_exact_at(&mut bytes, offset).expect("read");
        bytes.reverse();
        let (_, memory) = peer.room(6);
        memory.write_all_at(&bytes, 64).expect("write");
        peer.say(&ran(vec![place(DataType::Uint8, &[2, 3], 64, 6)]));
    });
    let output = output.expect("an output");
    assert_eq!(output.data()[..], [0, 3, 0, 2, 0, 1]);
    assert_eq!(output.shape().dims(), [2, 3]);
}

#[test]
fn malformed_outputs_are_refused() {
    let outside = "an output lies outside of the shared memory";
    let disagree = "an output's bytes do not agree with its shape";
    let number = "it gave another number of outputs than was asked for";
    let good = || place(DataType::Uint8, &[6], 0, 6);
    let cases = [
        (
            vec![place(DataType::Uint8, &[6], (64 << 10) - 5, 6)],
            outside,
        ),
        (vec![place(DataType::Uint8, &[6], usize::MAX, 6)], outside),
        (
            vec![place(DataType::Uint8, &[1 << 50], 0, 1 << 50)],
            outside,
        ),
        (vec![place(DataType::Uint8, &[7], 0, 6)], disagree),
        (vec![place(DataType::Uint8, &[7], 0, 0)], disagree),
        // Zeros are strings without bytes: two of them, not three.
        (vec![place(DataType::Bytes, &[3], 0, 8)], disagree),
        (vec![], number),
        (vec![good(), good()], number),
    ];
    for (places, what) in cases {
        let outcome = run(move |mut peer| {
            peer.hear();
            peer.room(6);
            peer.say(&ran(places));
        });
        assert!(is_wrong(&outcome, what), "{outcome:?}");
    }
    let outcome = run(move |mut peer| {
        peer.hear();
        peer.say(&ran(vec![good()]));
    });
    assert!(is_wrong(&outcome, outside), "without memory: {outcome:?}");
}

#[test]
fn outputs_together_must_fit_the_memory() {
    // Each of them does.
    let whole = || place(DataType::Uint8, &[64 << 10], 0, 64 << 10);
    let mut slots = [OutputSlot::new(0), OutputSlot::new(1)];
    let outcome = run_into(&mut slots, move |mut peer| {
        peer.hear();
        peer.room(64 << 10);
        peer.say(&ran(vec![whole(), whole()]));
    });
    assert!(
        is_wrong(
            &outcome,
            "its outputs have more bytes than the shared memory"
        ),
        "{outcome:?}"
    );
}

#[test]
fn memory_is_bounded() {
    let outcome = run(|mut peer| {
        peer.hear();
        peer.say(&FromWorker::NeedRoom(MAX_BYTES + 1));
    });
    assert!(is_wrong(
        &outcome,
        "it asked for more memory than is allowed"
    ));
    let outcome = run(|mut peer| {
        peer.hear();
        for _ in 0..=MAX_ROOMS {
            peer.room(1);
        }
    });
    assert!(is_wrong(&outcome, "it asked for memory too often"));
}

#[test]
fn refused_room_ends_the_run_and_not_the_worker() {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let mut peer = Peer(Channel::new(theirs));
    let bound = RunBound {
        limit_bytes: Some(100),
        budget: None,
    };
    let mut conversation = Conversation::new(Channel::new(ours.into()), bound);
    let thread = thread::spawn(move || {
        for answers in [true, false] {
            peer.hear();
            peer.say(&FromWorker::NeedRoom(1000));
            assert_eq!(peer.hear().0, ToWorker::NoRoom);
            let error = BackendError::new(ErrorKind::Exhausted, "no");
            peer.say(&match answers {
                true => FromWorker::Failed {
                    error,
                    memory: None,
                    ends: false,
                },
                false => FromWorker::NeedRoom(1),
            });
        }
    });
    let mut run = || conversation.run(&[], &mut [OutputSlot::new(0)]);
    match run() {
        Err(RunFailure::Run { error, ends, .. }) => {
            assert!(
                !ends && error.to_string().contains("may take 100"),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    }
    let outcome = run();
    assert!(matches!(outcome, Err(RunFailure::Wrong(_))), "{outcome:?}");
    thread.join().expect("the peer");
}

#[test]
fn messages_out_of_place_are_refused() {
    let outcome = run(|mut peer| {
        peer.hear();
        let error = BackendError::new(ErrorKind::Internal, "no");
        peer.say(&FromWorker::Refused(error));
    });
    assert!(is_wrong(&outcome, "it sent an answer without a request"));
    let outcome = run(|mut peer| {
        peer.hear();
        let said = peer.0.send(|writer| writer.bytes(b"nonsense"), &[]);
        said.expect("send");
    });
    assert!(is_wrong(&outcome, "its kind is unknown"), "{outcome:?}");
}

#[test]
fn a_worker_that_ends_before_the_batch_differs_from_one_that_ends_with_it() {
    let outcome = run(|mut peer| drop(peer.hear()));
    assert!(matches!(outcome, Err(RunFailure::Ended)), "{outcome:?}");
    let (ours, theirs) = UnixStream::pair().expect("pair");
    drop(theirs);
    let mut conversation = Conversation::new(Channel::new(ours.into()), RunBound::default());
    let outcome = conversation.run(&[], &mut []);
    assert!(matches!(outcome, Err(RunFailure::Idle)), "{outcome:?}");
}

#[test]
fn a_failed_run_says_why_and_whether_the_worker_ends() {
    for ends in [false, true] {
        let outcome = run(move |mut peer| {
            peer.hear();
            let error = BackendError::new(ErrorKind::InvalidArgument, "no");
            let memory = None;
            peer.say(&FromWorker::Failed {
                error,
                memory,
                ends,
            });
        });
        let Err(RunFailure::Run {
            error, ends: end, ..
        }) = outcome
        else {
            panic!("{outcome:?}");
        };
        assert_eq!((error.kind(), end), (ErrorKind::InvalidArgument, ends));
    }
}
