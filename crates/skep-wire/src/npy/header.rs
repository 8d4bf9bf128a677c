//! The header: a Python dictionary of three members.

use bytes::Bytes;
use skep_types::DataType;

use super::error::NpyError;

/// The first bytes of a file.
const MAGIC: &[u8] = b"\x93NUMPY";

/// Data begins at a multiple of this many bytes, as NumPy writes it.
const ALIGNMENT: usize = 64;

/// A header's content.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) kind: ElementKind,
    pub(super) is_big_endian: bool,
    /// Whether the first axis varies fastest.
    pub(super) is_column_major: bool,
    pub(super) shape: Vec<usize>,
}

/// The kind of the elements.
#[derive(Debug, Clone, Copy)]
pub(super) enum ElementKind {
    /// A datatype of fixed size.
    Number(DataType),
    /// Strings of this many bytes.
    Bytes(usize),
    /// Strings of this many characters.
    Text(usize),
}

/// Datatypes by NumPy's letter and size.
const NUMBERS: [(&str, DataType); 13] = [
    ("b1", DataType::Bool),
    ("u1", DataType::Uint8),
    ("u2", DataType::Uint16),
    ("u4", DataType::Uint32),
    ("u8", DataType::Uint64),
    ("i1", DataType::Int8),
    ("i2", DataType::Int16),
    ("i4", DataType::Int32),
    ("i8", DataType::Int64),
    ("f2", DataType::Fp16),
    ("f4", DataType::Fp32),
    ("f8", DataType::Fp64),
    ("V2", DataType::Bf16),
];

/// The header's name of a datatype of fixed size.
pub(super) fn descr(datatype: DataType) -> &'static str {
    match datatype {
        DataType::Bool => "|b1",
        DataType::Uint8 => "|u1",
        DataType::Uint16 => "<u2",
        DataType::Uint32 => "<u4",
        DataType::Uint64 => "<u8",
        DataType::Int8 => "|i1",
        DataType::Int16 => "<i2",
        DataType::Int32 => "<i4",
        DataType::Int64 => "<i8",
        DataType::Fp16 => "<f2",
        DataType::Fp32 => "<f4",
        DataType::Fp64 => "<f8",
        DataType::Bf16 => "|V2",
        DataType::Bytes => unreachable!("its elements have no fixed size"),
    }
}

impl ElementKind {
    /// The size of an element in bytes.
    pub(super) fn width(self) -> usize {
        match self {
            Self::Number(datatype) => datatype.element_size().unwrap_or(1),
            Self::Bytes(bytes) => bytes,
            Self::Text(characters) => characters.saturating_mul(4),
        }
    }

    /// Parses NumPy's letter and size.
    fn named(name: &str) -> Option<Self> {
        if let Some((_, datatype)) = NUMBERS.iter().find(|(known, _)| *known == name) {
            return Some(Self::Number(*datatype));
        }
        let size = || name.get(1..)?.parse().ok().filter(|size| *size > 0);
        match name.chars().next()? {
            'S' | 'a' => size().map(Self::Bytes),
            'U' => size().map(Self::Text),
            _ => None,
        }
    }
}

impl Header {
    /// Reads a file's header; returns it and the offset of the data.
    pub(super) fn read(file: &Bytes) -> Result<(Self, usize), NpyError> {
        const CUT: NpyError = NpyError::Header("it is cut off");
        let rest = file.strip_prefix(MAGIC).ok_or(NpyError::Magic)?;
        let (version, rest) = rest.split_first_chunk::<2>().ok_or(CUT)?;
        let (length, rest) = match version[0] {
            1 => {
                let (length, rest) = rest.split_first_chunk().ok_or(CUT)?;
                (usize::from(u16::from_le_bytes(*length)), rest)
            }
            2 | 3 => {
                let (length, rest) = rest.split_first_chunk().ok_or(CUT)?;
                let length = u32::from_le_bytes(*length);
                (usize::try_from(length).map_err(|_| CUT)?, rest)
            }
            later => return Err(NpyError::Version(later)),
        };
        let text = rest.get(..length).ok_or(CUT)?;
        let text = str::from_utf8(text).map_err(|_| NpyError::Header("it is not text"))?;
        let start = file.len() - rest.len() + length;
        Ok((HeaderReader(text).header()?, start))
    }
}

/// The rest of the header's text.
struct HeaderReader<'a>(&'a str);

impl<'a> HeaderReader<'a> {
    fn header(mut self) -> Result<Header, NpyError> {
        let (mut descr, mut order, mut shape) = (None, None, None);
        self.expect("{", "it is not a dictionary")?;
        while !self.take("}") {
            let key = self.string()?;
            self.expect(":", "a key without a value")?;
            match key {
                "descr" => descr = Some(self.elements()?),
                "fortran_order" => order = Some(self.boolean()?),
                "shape" => shape = Some(self.shape()?),
                _ => return Err(NpyError::Header("it has an unknown key")),
            }
            if !self.take(",") {
                self.expect("}", "a member without a comma behind it")?;
                break;
            }
        }
        let (Some((kind, is_big_endian)), Some(is_column_major), Some(shape)) =
            (descr, order, shape)
        else {
            return Err(NpyError::Header(
                "`descr`, `fortran_order` or `shape` is missing",
            ));
        };
        Ok(Header {
            kind,
            is_big_endian,
            is_column_major,
            shape,
        })
    }

    /// Consumes the next token if it is this one; returns whether it was.
    fn take(&mut self, token: &str) -> bool {
        let rest = self.0.trim_start();
        let taken = rest.strip_prefix(token);
        self.0 = taken.unwrap_or(rest);
        taken.is_some()
    }

    fn expect(&mut self, token: &str, otherwise: &'static str) -> Result<(), NpyError> {
        if self.take(token) {
            Ok(())
        } else {
            Err(NpyError::Header(otherwise))
        }
    }

    fn string(&mut self) -> Result<&'a str, NpyError> {
        const NONE: NpyError = NpyError::Header("expected a string");
        let quote = ["'", "\""].into_iter().find(|quote| self.take(quote));
        let (text, rest) = self.0.split_once(quote.ok_or(NONE)?).ok_or(NONE)?;
        self.0 = rest;
        Ok(text)
    }

    /// The kind of the elements, and whether their bytes are big-endian.
    fn elements(&mut self) -> Result<(ElementKind, bool), NpyError> {
        if self.0.trim_start().starts_with('[') {
            return Err(NpyError::Elements("a structure of several".to_owned()));
        }
        let descr = self.string()?;
        let unknown = || NpyError::Elements(descr.chars().take(32).collect());
        let (order, name) = match descr.as_bytes().first() {
            Some(order @ (b'<' | b'>' | b'|')) => (*order, &descr[1..]),
            _ => return Err(unknown()),
        };
        let kind = ElementKind::named(name).ok_or_else(unknown)?;
        Ok((kind, order == b'>'))
    }

    fn boolean(&mut self) -> Result<bool, NpyError> {
        if self.take("True") {
            return Ok(true);
        }
        self.expect("False", "`fortran_order` is neither True nor False")?;
        Ok(false)
    }

    fn shape(&mut self) -> Result<Vec<usize>, NpyError> {
        let mut shape = Vec::new();
        self.expect("(", "`shape` is not a tuple")?;
        while !self.take(")") {
            let rest = self.0;
            let end = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            let dim = rest[..end].parse();
            shape.push(
                dim.map_err(|_| NpyError::Header("`shape` has a dimension that is not a number"))?,
            );
            self.0 = &rest[end..];
            if !self.take(",") {
                self.expect(")", "`shape` does not end")?;
                break;
            }
            // A space may follow.
            self.take("");
        }
        Ok(shape)
    }
}

/// A header of version 1, up to where data begins.
pub(super) fn write(descr: &str, dims: &[usize]) -> Vec<u8> {
    let list: Vec<String> = dims.iter().map(|dim| format!("{dim},")).collect();
    let shape = list.join(" ");
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    let before = MAGIC.len() + 4;
    let length = (before + text.len() + 1).next_multiple_of(ALIGNMENT) - before;
    text.extend(std::iter::repeat_n(' ', length - text.len() - 1));
    text.push('\n');
    let mut file = MAGIC.to_vec();
    file.extend_from_slice(&[1, 0]);
    let length = u16::try_from(length).expect("64 dimensions of 20 digits fit");
    file.extend_from_slice(&length.to_le_bytes());
    file.extend_from_slice(text.as_bytes());
    file
}
