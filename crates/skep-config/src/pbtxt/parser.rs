//! Protobuf text format over descriptors: fields, messages, lists, maps.
//!
//! The grammar is protobuf's own. The parser knows nothing of model configurations, so a field added to the `.proto`
//! parses.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

use super::{
    hint,
    lexer::{LexError, Lexer, Token, position},
    scalar,
};
use crate::{error::ConfigError, hints::suggest::did_you_mean};

/// The most messages within messages. The deepest path of a model configuration has 6; the limit protects the stack
/// from any schema.
const MAX_DEPTH: usize = 32;

/// Reads one message from a text.
pub(super) struct Parser<'a> {
    text: &'a str,
    file: &'a str,
    lexer: Lexer<'a>,
    token: Token<'a>,
    /// Where `token` starts.
    offset: usize,
    /// The path of the current field.
    path: Vec<String>,
    /// The offset of the first occurrence of each single field, list element and map entry, by path.
    offsets: BTreeMap<String, usize>,
}

/// The members of one message that are set so far, to find fields that are set twice.
#[derive(Default)]
struct SetFields {
    singular: BTreeSet<u32>,
    /// The member that was set, by the full name of its `oneof`.
    oneofs: BTreeMap<String, String>,
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str, file: &'a str) -> Result<Self, ConfigError> {
        let mut parser = Self {
            text,
            file,
            lexer: Lexer::new(text),
            token: Token::End,
            offset: 0,
            path: Vec::new(),
            offsets: BTreeMap::new(),
        };
        parser.advance()?;
        Ok(parser)
    }

    /// Reads the whole text as one message. Also returns the offsets of its fields by path.
    pub(super) fn parse(
        mut self,
        message: &MessageDescriptor,
    ) -> Result<(DynamicMessage, BTreeMap<String, usize>), ConfigError> {
        let message = self.fields(message, None, 0)?;
        Ok((message, self.offsets))
    }

    fn note_offset(&mut self, offset: usize) {
        self.offsets.entry(self.path.join(".")).or_insert(offset);
    }

    /// Reads fields up to `close`, or to the end of the file.
    fn fields(
        &mut self,
        descriptor: &MessageDescriptor,
        close: Option<char>,
        depth: usize,
    ) -> Result<DynamicMessage, ConfigError> {
        let mut message = DynamicMessage::new(descriptor.clone());
        let mut set = SetFields::default();
        loop {
            match (&self.token, close) {
                (Token::End, None) => return Ok(message),
                (Token::Punct(c), Some(close)) if *c == close => {
                    self.advance()?;
                    return Ok(message);
                }
                (Token::Ident(name), _) => {
                    let name = *name;
                    self.field(name, &mut message, &mut set, depth)?;
                    self.skip_separator()?;
                }
                (_, None) => return Err(self.unexpected("a field name")),
                (_, Some(close)) => {
                    return Err(self.unexpected(&format!("a field name or `{close}`")));
                }
            }
        }
    }

    fn field(
        &mut self,
        name: &str,
        message: &mut DynamicMessage,
        set: &mut SetFields,
        depth: usize,
    ) -> Result<(), ConfigError> {
        let descriptor = message.descriptor_ref();
        let Some(field) = descriptor.get_field_by_name(name) else {
            return Err(self.unknown_field(name, &descriptor));
        };
        self.path.push(name.to_owned());
        self.note_offset(self.offset);
        if !field.is_list() && !field.is_map() {
            self.note_singular(&field, set)?;
        }
        self.advance()?;
        let is_message = matches!(field.kind(), Kind::Message(_));
        if self.token == Token::Punct(':') {
            self.advance()?;
        } else if !is_message {
            return Err(self.unexpected("`:`"));
        }
        let many = field.is_list() || field.is_map();
        if many && self.token == Token::Punct('[') {
            self.list(&field, message, depth)?;
        } else {
            self.value_into(&field, message, depth)?;
        }
        self.path.pop();
        Ok(())
    }

    /// Refuses a second setting of a field that is not repeated, and a second member of a `oneof`, as protobuf does.
    fn note_singular(
        &self,
        field: &FieldDescriptor,
        set: &mut SetFields,
    ) -> Result<(), ConfigError> {
        let name = field.name();
        let reason = if !set.singular.insert(field.number()) {
            Some(format!(
                "non-repeated field `{}` is specified multiple times",
                self.path.join(".")
            ))
        } else if let Some(oneof) = field.containing_oneof() {
            set.oneofs.insert(oneof.full_name().to_owned(), name.to_owned()).map(|other| {
                format!("field `{name}` is specified along with field `{other}`, another member of oneof `{}`", oneof.name())
            })
        } else {
            None
        };
        match reason {
            None => Ok(()),
            Some(reason) => Err(ConfigError::Repeated {
                at: position(self.text, self.offset, self.file),
                field: self.path.join("."),
                reason,
            }),
        }
    }

    /// `[ value, value ]`, the opening bracket not yet read.
    fn list(
        &mut self,
        field: &FieldDescriptor,
        message: &mut DynamicMessage,
        depth: usize,
    ) -> Result<(), ConfigError> {
        self.advance()?;
        if self.token == Token::Punct(']') {
            return self.advance();
        }
        loop {
            self.value_into(field, message, depth)?;
            match self.token {
                Token::Punct(',') => self.advance()?,
                Token::Punct(']') => return self.advance(),
                _ => return Err(self.unexpected("`,` or `]`")),
            }
        }
    }

    /// Reads one value and sets it, or appends it.
    fn value_into(
        &mut self,
        field: &FieldDescriptor,
        message: &mut DynamicMessage,
        depth: usize,
    ) -> Result<(), ConfigError> {
        if field.is_list() {
            let index = message.get_field(field).as_list().map_or(0, <[Value]>::len);
            let name = self.path.pop().unwrap_or_default();
            self.path.push(format!("{}[{index}]", field.name()));
            self.note_offset(self.offset);
            let value = self.value(field, depth)?;
            self.path.pop();
            self.path.push(name);
            if let Some(list) = message.get_field_mut(field).as_list_mut() {
                list.push(value);
            }
            return Ok(());
        }
        let offset = self.offset;
        let value = self.value(field, depth)?;
        if field.is_map() {
            if let (Some((key, value)), Some(map)) =
                (entry(&value), message.get_field_mut(field).as_map_mut())
            {
                if let MapKey::String(key) = &key {
                    self.path.push(key.clone());
                    self.note_offset(offset);
                    self.path.pop();
                }
                // As in protobuf, the last value of a key wins.
                map.insert(key, value);
            }
        } else {
            message.set_field(field, value);
        }
        Ok(())
    }

    /// Reads one value of the field's kind; for a map, an entry message.
    fn value(&mut self, field: &FieldDescriptor, depth: usize) -> Result<Value, ConfigError> {
        let Kind::Message(descriptor) = field.kind() else {
            return self.scalar(&field.kind());
        };
        let close = match self.token {
            Token::Punct('{') => '}',
            Token::Punct('<') => '>',
            _ => return Err(self.not_a_message(field.name(), &descriptor)),
        };
        if depth + 1 > MAX_DEPTH {
            return Err(self.unexpected(&format!("at most {MAX_DEPTH} nested messages")));
        }
        self.advance()?;
        Ok(Value::Message(self.fields(
            &descriptor,
            Some(close),
            depth + 1,
        )?))
    }

    fn scalar(&mut self, kind: &Kind) -> Result<Value, ConfigError> {
        let start = self.offset;
        let negative = self.token == Token::Punct('-');
        if negative {
            self.advance()?;
        }
        let token = std::mem::replace(&mut self.token, Token::End);
        let value = match (&token, negative) {
            (Token::Text(first), false) => {
                let mut bytes = first.clone();
                self.advance()?;
                while let Token::Text(more) = &self.token {
                    bytes.extend_from_slice(more);
                    self.advance()?;
                }
                scalar::text(kind, bytes)
            }
            (Token::Number(_) | Token::Ident(_), _) => {
                let value = scalar::word(kind, &token, negative);
                if value.is_ok() {
                    self.advance()?;
                }
                value
            }
            _ => Err(scalar::ScalarError::wrong_kind(kind)),
        };
        value.map_err(|error| {
            let got = error.got.unwrap_or_else(|| match token.describe() {
                described if negative => described.replacen('`', "`-", 1),
                described => described,
            });
            self.error(start, error.expected, got, did_you_mean(error.nearest))
        })
    }

    fn advance(&mut self) -> Result<(), ConfigError> {
        match self.lexer.next() {
            Ok((offset, token)) => {
                self.offset = offset;
                self.token = token;
                Ok(())
            }
            Err(LexError {
                offset,
                expected,
                got,
            }) => Err(self.error(offset, expected.to_owned(), got, None)),
        }
    }

    /// One `;` or `,` may follow a field.
    fn skip_separator(&mut self) -> Result<(), ConfigError> {
        if matches!(self.token, Token::Punct(';' | ',')) {
            self.advance()
        } else {
            Ok(())
        }
    }

    fn unexpected(&self, expected: &str) -> ConfigError {
        self.error(
            self.offset,
            expected.to_owned(),
            self.token.describe(),
            None,
        )
    }

    fn error(
        &self,
        offset: usize,
        expected: String,
        got: String,
        hint: Option<String>,
    ) -> ConfigError {
        let at = position(self.text, offset, self.file);
        ConfigError::Syntax {
            at,
            field: self.path.join("."),
            expected,
            got,
            hint,
        }
    }

    fn unknown_field(&self, name: &str, message: &MessageDescriptor) -> ConfigError {
        // A name may be as long as the file.
        const SHOWN_CHARS: usize = 64;
        let fields: Vec<FieldDescriptor> = message.fields().collect();
        ConfigError::UnknownField {
            at: position(self.text, self.offset, self.file),
            field: name.chars().take(SHOWN_CHARS).collect(),
            message: message.name().to_owned(),
            hint: hint::unknown_field(
                name,
                self.text.get(self.offset..).unwrap_or_default(),
                fields.iter().map(FieldDescriptor::name),
            ),
        }
    }

    /// Refuses a scalar where `message` is expected.
    fn not_a_message(&self, field: &str, message: &MessageDescriptor) -> ConfigError {
        self.error(
            self.offset,
            "`{`".to_owned(),
            self.token.describe(),
            hint::in_message(field, &self.token, message),
        )
    }
}

/// The key and value of a map's entry; absent ones have their defaults.
fn entry(value: &Value) -> Option<(MapKey, Value)> {
    let entry = value.as_message()?;
    let key = entry
        .get_field_by_name("key")?
        .into_owned()
        .into_map_key()?;
    Some((key, entry.get_field_by_name("value")?.into_owned()))
}

/// The descriptor of a message under construction, without borrowing it.
trait DescriptorRef {
    fn descriptor_ref(&self) -> MessageDescriptor;
}

impl DescriptorRef for DynamicMessage {
    fn descriptor_ref(&self) -> MessageDescriptor {
        prost_reflect::ReflectMessage::descriptor(self)
    }
}
