//! Inputs and their shapes, as flags give them.

use skep_types::Dims;

use super::{file::picture, *};

fn input(datatype: DataType, shape: &[i64]) -> TensorMetadata {
    TensorMetadata {
        name: "x".to_owned(),
        datatype,
        shape: Dims::new(shape).expect("dims"),
    }
}

fn made(
    datatype: DataType,
    declared: &[i64],
    text: &str,
    dims: Option<&[usize]>,
) -> Result<Vec<usize>, String> {
    let shape = dims.map(|dims| Shape::new(dims).expect("shape"));
    tensor(
        &input(datatype, declared),
        &InputData::Text(text.to_owned()),
        shape.as_ref(),
    )
    .map(|tensor| tensor.shape().dims().to_vec())
    .map_err(|error| format!("{error:#}"))
}

#[test]
fn shapes_come_from_the_flag_the_data_or_the_model() {
    let int = DataType::Int32;
    for (declared, text, flag, shape) in [
        (&[-1, 4][..], "[1,2,3,4]", None, &[1, 4][..]),
        (&[-1, 2], "[1,2,3,4]", None, &[2, 2]),
        (&[-1, -1], "[[1,2],[3,4],[5,6]]", None, &[3, 2]),
        (&[-1, -1], "[1,2]", Some(&[2, 1][..]), &[2, 1]),
        (&[2, 2], "[1,2,3,4]", None, &[2, 2]),
        (&[-1], "7", None, &[1]),
        (&[], "7", None, &[]),
        (&[-1, 3], "[]", None, &[0, 3]),
        // The server says that this is wrong, and what it expects.
        (&[-1, 4], "[[1,2]]", None, &[1, 2]),
    ] {
        assert_eq!(
            made(int, declared, text, flag).as_deref(),
            Ok(shape),
            "{text}"
        );
    }
}

#[test]
fn data_that_does_not_fit_is_refused_with_the_reason() {
    let int = DataType::Int32;
    for (declared, text, flag, why) in [
        (
            &[-1, 4][..],
            "[1,2,3]",
            None,
            "has 3 elements, which do not fit into shape [-1,4]",
        ),
        (&[-1, -1], "[1,2]", None, "--shape x=..."),
        (
            &[-1, -1],
            "[[1,2],[3]]",
            None,
            "rows of different shapes, [2] and [1]",
        ),
        (
            &[-1],
            "[1,2]",
            Some(&[3][..]),
            "has 2 elements, expected 3 for shape [3]",
        ),
        (
            &[4],
            "[[1],[2]]",
            None,
            "has 2 elements, expected 4 for shape [4]",
        ),
        (&[-1], "[1,", None, "is not JSON: EOF"),
        (&[-1], "[1.5]", None, "1.5 is not a valid INT32"),
        (&[-1], "[-3000000000]", None, "is not a valid INT32"),
        (&[-1], "{}", None, "got an object"),
        (&[-1], "abc", None, "is not JSON"),
        (&[-1], "", None, "is not JSON"),
    ] {
        let error = made(int, declared, text, flag).expect_err(text);
        assert!(error.contains(why), "{text}: {error}");
    }
    let error = made(DataType::Fp16, &[-1], "[1e6]", None).expect_err("too large");
    assert!(error.contains("1000000 is too large"), "{error}");
}

#[test]
fn text_for_a_string_needs_no_quotes() {
    let one = |text: &str| {
        let data = InputData::Text(text.to_owned());
        let tensor = tensor(&input(DataType::Bytes, &[-1]), &data, None).expect("tensor");
        let elements = tensor.view().strings().map(<[u8]>::to_vec);
        elements.collect::<Vec<_>>()
    };
    assert_eq!(one("a, b=c"), [b"a, b=c".to_vec()]);
    assert_eq!(
        one("[\"a\",\"é\"]"),
        [b"a".to_vec(), "é".as_bytes().to_vec()]
    );
    assert_eq!(one("\"[\""), [b"[".to_vec()]);
    assert_eq!(one(""), [b"".to_vec()]);
}

#[test]
fn pictures_are_known_by_their_first_bytes() {
    for (bytes, kind) in [
        (&b"\x89PNG\r\n\x1a\n..."[..], Some("PNG")),
        (b"\xff\xd8\xff\xe0", Some("JPEG")),
        (b"GIF89a", Some("GIF")),
        (b"GIF87a", Some("GIF")),
        (b"RIFF\x10\0\0\0WEBPVP8 ", Some("WebP")),
        // Sound.
        (b"RIFF\x10\0\0\0WAVEfmt ", None),
        (b"RIFF", None),
        (b"\x89PNG", None),
        (b"", None),
    ] {
        assert_eq!(picture(bytes), kind, "{bytes:?}");
    }
}

#[test]
fn flags_are_a_name_and_more() {
    assert!(matches!(data("a=b"), Ok(InputData::Text(text)) if text == "a=b"));
    assert!(matches!(data("@f.npy"), Ok(InputData::File(path)) if path == Path::new("f.npy")));
    assert!(data("@").is_err());
    for wrong in ["x", "=1", "x=@"] {
        assert!(given(wrong).is_err(), "{wrong}");
    }
    assert_eq!(shape("[2,0]").expect("a shape").dims(), [2, 0]);
    assert_eq!(shape("").expect("a scalar").rank(), 0);
    assert!(given_shape("a=b=1, 3").is_ok() && given_shape("x=").is_ok());
    for wrong in [
        "x",
        "=1",
        "x=1,,2",
        "x=-1,2",
        "x=1x2",
        "x=9999999999999,9999999999999",
    ] {
        assert!(given_shape(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_longest_name_of_an_input_counts() {
    let inputs = |names: &[&str]| -> Vec<TensorMetadata> {
        let named = |name: &&str| TensorMetadata {
            name: (*name).to_owned(),
            ..input(DataType::Int32, &[1])
        };
        names.iter().map(named).collect()
    };
    for (text, names, expected) in [
        ("a=b=1", &["a", "a=b"][..], Some(("a=b", "1"))),
        ("a=b=1", &["a=b", "a"], Some(("a=b", "1"))),
        ("a=b=1", &["a"], Some(("a", "b=1"))),
        ("a=b", &["a", "a=b"], Some(("a", "b"))),
        ("ab=1", &["a"], None),
        ("a", &["a"], None),
    ] {
        assert_eq!(named(text, &inputs(names)), expected, "{text} {names:?}");
    }
}
