//! Messages decode to what was encoded, and other bytes are refused.

use proptest::prelude::*;
use skep_backend::{BackendError, ErrorKind, FileInterface, RunMemory};
use skep_ipc::MessageWriter;
use skep_types::{DataType, Dims, ModelSignature, Shape, TensorSpec};

use super::{
    AllocatorLibrary, BakeTask, FormFiles, FromWorker, KINDS, LoadTask, MAX_TEXT_BYTES,
    SharedTensor, ToWorker, WeightLocations, WorkerModel,
};

fn place(dims: &[usize]) -> SharedTensor {
    SharedTensor {
        datatype: DataType::Fp16,
        shape: Shape::new(dims).expect("shape"),
        offset: 64,
        length: 12,
    }
}

fn requests() -> Vec<ToWorker> {
    let load = LoadTask {
        backend: "mock".to_owned(),
        library: Some(b"/lib/\xff.so".to_vec()),
        allocator: Some(AllocatorLibrary {
            name: "mine".to_owned(),
            path: b"/lib/libmine\xff.so".to_vec(),
        }),
        model: "m".to_owned(),
        path: Vec::new(),
        weights: Some(WeightLocations {
            directory: b"/somewhere".to_vec(),
            form: Some(FormFiles {
                key: [7; 32],
                files: vec![b"/somewhere/\xff".to_vec(), Vec::new()],
            }),
            budget_bytes: 1 << 40,
            random_order: true,
        }),
        bake: Some(BakeTask {
            directory: b"/elsewhere".to_vec(),
            budget_bytes: 1 << 41,
            behind: Some(120),
        }),
        ask: false,
        threads: 3,
        intra_op_threads: Some(0),
        inter_op_threads: None,
        config: vec![1, 2, 3],
    };
    vec![
        ToWorker::Load(Box::new(load)),
        ToWorker::Run {
            memory: Some(1 << 20),
            inputs: vec![place(&[2, 3]), place(&[])],
            wanted: vec![0, 7],
        },
        ToWorker::Run {
            memory: None,
            inputs: Vec::new(),
            wanted: Vec::new(),
        },
        ToWorker::Room(usize::MAX),
        ToWorker::NoRoom,
    ]
}

fn answers() -> Vec<FromWorker> {
    let spec = |dims: Option<&[i64]>| TensorSpec {
        name: "x".to_owned(),
        datatype: DataType::Bytes,
        dims: dims.map(|dims| Dims::new(dims).expect("dims")),
    };
    let memory = Some(RunMemory {
        planned_bytes: 1,
        used_bytes: 2,
        saved_bytes: 3,
        planned_runs: 4,
        recorded_runs: 5,
        deviated_runs: 6,
        unplanned_runs: u64::MAX,
        reserved_bytes: 8,
    });
    let error = BackendError::new(ErrorKind::InvalidModel, "no `x`");
    let answers = vec![
        FromWorker::Baked,
        FromWorker::Told(FileInterface {
            signature: ModelSignature {
                inputs: vec![spec(Some(&[-1, 4]))],
                outputs: Vec::new(),
            },
            dimension_names: [("x".to_owned(), vec!["n".to_owned(), String::new()])].into(),
        }),
        FromWorker::Loaded(WorkerModel {
            signature: ModelSignature {
                inputs: vec![spec(None), spec(Some(&[-1, 4]))],
                outputs: vec![spec(Some(&[]))],
            },
            cpu_threads: Some(2),
            echoes_parameters: true,
            found_damage: true,
            is_baked: false,
        }),
        FromWorker::Refused(error.clone()),
        FromWorker::NeedRoom(9),
        FromWorker::Ran {
            outputs: vec![place(&[0, 5])],
            memory,
        },
        FromWorker::Failed {
            error,
            memory: None,
            ends: true,
        },
    ];
    let kinds = KINDS.map(|kind| FromWorker::Refused(BackendError::new(kind, "no")));
    answers.into_iter().chain(kinds).collect()
}

fn encoded(encode: impl FnOnce(&mut MessageWriter)) -> Vec<u8> {
    let mut writer = MessageWriter::default();
    encode(&mut writer);
    writer.into_bytes()
}

#[test]
fn messages_decode_to_what_was_encoded() {
    for request in requests() {
        let bytes = encoded(|writer| request.encode(writer));
        assert_eq!(ToWorker::decode(&bytes), Ok(request));
    }
    for answer in answers() {
        let bytes = encoded(|writer| answer.encode(writer));
        assert_eq!(FromWorker::decode(&bytes), Ok(answer));
    }
}

#[test]
fn a_message_that_is_cut_or_followed_by_bytes_is_refused() {
    let requests = requests();
    let requests = requests.iter().map(|r| encoded(|writer| r.encode(writer)));
    for bytes in requests {
        assert!((0..bytes.len()).all(|end| ToWorker::decode(&bytes[..end]).is_err()));
        assert!(ToWorker::decode(&[&bytes[..], &[0]].concat()).is_err());
    }
    let answers = answers();
    let answers = answers.iter().map(|a| encoded(|writer| a.encode(writer)));
    for bytes in answers {
        assert!((0..bytes.len()).all(|end| FromWorker::decode(&bytes[..end]).is_err()));
        assert!(FromWorker::decode(&[&bytes[..], &[0]].concat()).is_err());
    }
}

#[test]
fn a_load_of_another_version_is_refused() {
    let bytes = encoded(|writer| requests()[0].encode(writer));
    let mut other = bytes;
    // The version, behind the kind and the length.
    other[5 + b"skep worker ".len()] = b'0';
    let error = ToWorker::decode(&other).expect_err("another version");
    assert_eq!(error.to_string(), "it is not from a server of this version");
}

#[test]
fn a_long_text_is_cut_by_the_writer_and_refused_by_the_reader() {
    let long = "\u{e9}".repeat(MAX_TEXT_BYTES);
    let error = BackendError::new(ErrorKind::Internal, long);
    let bytes = encoded(|writer| FromWorker::Refused(error).encode(writer));
    let Ok(FromWorker::Refused(read)) = FromWorker::decode(&bytes) else {
        panic!("a refusal is read");
    };
    assert_eq!(read.to_string().len(), MAX_TEXT_BYTES);
    let longer = encoded(|writer| {
        writer.u8(2);
        writer.u8(4);
        writer.bytes(&vec![b'a'; MAX_TEXT_BYTES + 1]);
    });
    assert!(FromWorker::decode(&longer).is_err());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = ToWorker::decode(&bytes);
        let _ = FromWorker::decode(&bytes);
    }

    /// A valid message with changed bytes is refused, or is another valid message with exactly these bytes.
    #[test]
    fn changed_bytes_never_panic(
        which in 0..5usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let answer = &answers()[which];
        let mut bytes = encoded(|writer| answer.encode(writer));
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Ok(read) = FromWorker::decode(&bytes) {
            prop_assert_eq!(encoded(|writer| read.encode(writer)), bytes);
        }
    }
}
