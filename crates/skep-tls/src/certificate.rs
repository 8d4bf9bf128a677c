//! The few fields of an X.509 certificate that Skep needs to verify version 1, which `openssl x509 -req` makes without
//! a file of extensions and webpki refuses.
//!
//! Source: RFC 5280, "Basic Certificate Fields" and "Validity"; X.690, "Distinguished Encoding Rules".

/// The DER tags that occur in these fields.
mod tag {
    pub(super) const INTEGER: u8 = 0x02;
    pub(super) const BIT_STRING: u8 = 0x03;
    pub(super) const UTC_TIME: u8 = 0x17;
    pub(super) const GENERALIZED_TIME: u8 = 0x18;
    pub(super) const SEQUENCE: u8 = 0x30;
    pub(super) const VERSION: u8 = 0xa0;
}

/// The fields of a certificate: contents without tag and length, unless stated otherwise.
#[derive(Debug)]
pub struct Certificate<'a> {
    /// The signed part, with tag and length.
    pub signed: &'a [u8],
    /// Whether it has version 1, which is the default and not encoded.
    pub is_version_1: bool,
    /// The name of its issuer.
    pub issuer: &'a [u8],
    validity: &'a [u8],
    /// With tag and length.
    pub public_key_info: &'a [u8],
    /// The same, parsed.
    pub public_key: PublicKey<'a>,
    /// The algorithm of the signature.
    pub algorithm: &'a [u8],
    /// The issuer's signature over `signed`.
    pub signature: &'a [u8],
}

/// A public key and its algorithm.
#[derive(Debug)]
pub struct PublicKey<'a> {
    /// The algorithm of the key.
    pub algorithm: &'a [u8],
    /// The key itself.
    pub bits: &'a [u8],
}

impl<'a> PublicKey<'a> {
    /// Parses the contents of a `SubjectPublicKeyInfo`.
    #[must_use]
    pub fn parse(info: &'a [u8]) -> Option<Self> {
        let mut info = DerReader(info);
        let key = Self {
            algorithm: info.take(tag::SEQUENCE)?,
            bits: info.bits()?,
        };
        info.is_empty().then_some(key)
    }
}

impl<'a> Certificate<'a> {
    /// Parses a certificate; `None` for malformed DER. Extensions are ignored.
    #[must_use]
    pub fn parse(der: &'a [u8]) -> Option<Self> {
        let mut outer = DerReader(der);
        let mut whole = DerReader(outer.take(tag::SEQUENCE)?);
        if !outer.is_empty() {
            return None;
        }
        let (signed, fields) = whole.take_whole(tag::SEQUENCE)?;
        let algorithm = whole.take(tag::SEQUENCE)?;
        let signature = whole.bits()?;
        let mut fields = DerReader(fields);
        let version = fields.take(tag::VERSION);
        fields.take(tag::INTEGER)?;
        // The signed part names the algorithm too; both must agree.
        if fields.take(tag::SEQUENCE)? != algorithm || !whole.is_empty() {
            return None;
        }
        let issuer = fields.take(tag::SEQUENCE)?;
        let validity = fields.take(tag::SEQUENCE)?;
        fields.take(tag::SEQUENCE)?;
        let (public_key_info, key) = fields.take_whole(tag::SEQUENCE)?;
        // Version 1 ends here, and is not encoded.
        if version.is_none() && !fields.is_empty() {
            return None;
        }
        Some(Self {
            signed,
            is_version_1: version.is_none(),
            issuer,
            validity,
            public_key_info,
            public_key: PublicKey::parse(key)?,
            algorithm,
            signature,
        })
    }

    /// Its period of validity, in seconds since 1970: first and last second.
    #[must_use]
    pub fn validity(&self) -> Option<(i64, i64)> {
        let mut times = DerReader(self.validity);
        Some((times.time()?, times.time()?))
    }
}

/// A sequence of DER values.
struct DerReader<'a>(&'a [u8]);

impl<'a> DerReader<'a> {
    const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The contents of the next value. `None`, and the value stays, if it has another tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.take_whole(tag).map(|(_, contents)| contents)
    }

    /// The next value with its tag and length, and its contents.
    fn take_whole(&mut self, tag: u8) -> Option<(&'a [u8], &'a [u8])> {
        let (&first, rest) = self.0.split_first()?;
        if first != tag {
            return None;
        }
        let (&short, rest) = rest.split_first()?;
        let (length, contents) = match short {
            0..=0x7f => (usize::from(short), rest),
            // Certificates have no longer values.
            0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(short - 0x80))?;
                let length = bytes
                    .iter()
                    .fold(0, |length, &byte| length << 8 | usize::from(byte));
                (length, rest)
            }
            _ => return None,
        };
        let (contents, rest) = contents.split_at_checked(length)?;
        let whole = &self.0[..self.0.len() - rest.len()];
        self.0 = rest;
        Some((whole, contents))
    }

    /// A bit string of whole bytes.
    fn bits(&mut self) -> Option<&'a [u8]> {
        match self.take(tag::BIT_STRING)?.split_first()? {
            (0, bytes) => Some(bytes),
            _ => None,
        }
    }

    /// A time, in seconds since 1970.
    fn time(&mut self) -> Option<i64> {
        if let Some(text) = self.take(tag::UTC_TIME) {
            let (year, rest) = text.split_at_checked(2)?;
            let year = number(year)?;
            return seconds(year + if year < 50 { 2000 } else { 1900 }, rest);
        }
        let (year, rest) = self.take(tag::GENERALIZED_TIME)?.split_at_checked(4)?;
        seconds(number(year)?, rest)
    }
}

/// A number of decimal digits.
fn number(digits: &[u8]) -> Option<i64> {
    let is_number = digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| {
        digits
            .iter()
            .fold(0, |number, &digit| number * 10 + i64::from(digit - b'0'))
    })
}

/// Seconds since 1970 of `MMDDHHMMSSZ` in a year.
fn seconds(year: i64, rest: &[u8]) -> Option<i64> {
    let (digits, b"Z") = rest.split_at_checked(10)? else {
        return None;
    };
    let mut fields = digits.chunks(2).map(number);
    let mut field = |range: std::ops::RangeInclusive<i64>| {
        fields
            .next()
            .flatten()
            .filter(|value| range.contains(value))
    };
    let (month, day) = (field(1..=12)?, field(1..=31)?);
    let (hour, minute, second) = (field(0..=23)?, field(0..=59)?, field(0..=59)?);
    // A year that begins in March ends with the leap day.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    let days = year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1;
    /// Days from the first of March of the year 0 to the first day of 1970.
    const TO_1970: i64 = 719_468;
    Some((days - TO_1970) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds() {
        let time = |tag, text: &str| {
            let length = u8::try_from(text.len()).expect("short");
            let value = [&[tag, length][..], text.as_bytes()].concat();
            DerReader(&value).time()
        };
        for (tag, text, expected) in [
            (tag::UTC_TIME, "700101000000Z", Some(0)),
            (tag::UTC_TIME, "000229123456Z", Some(951_827_696)),
            (tag::UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (tag::UTC_TIME, "500101000000Z", Some(-631_152_000)),
            (
                tag::GENERALIZED_TIME,
                "20500101000000Z",
                Some(2_524_608_000),
            ),
            (
                tag::GENERALIZED_TIME,
                "99991231235959Z",
                Some(253_402_300_799),
            ),
            (tag::UTC_TIME, "001301000000Z", None),
            (tag::UTC_TIME, "000229123456", None),
            (tag::UTC_TIME, "000229123456+01", None),
            (tag::UTC_TIME, "0x0229123456Z", None),
            (tag::UTC_TIME, "", None),
            (tag::INTEGER, "700101000000Z", None),
        ] {
            assert_eq!(time(tag, text), expected, "{text}");
        }
    }

    #[test]
    fn lengths_stay_within_what_there_is() {
        for (der, expected) in [
            (&[0x30, 1, 7][..], Some(&[7][..])),
            (&[0x30, 0x81, 1, 7], Some(&[7])),
            (&[0x30, 0x83, 0, 0, 1, 7], Some(&[7])),
            (&[0x30, 2, 7], None),
            (&[0x30, 0x84, 0, 0, 0, 1, 7], None),
            (&[0x30, 0x80, 7], None),
            (&[0x30, 0x82, 1], None),
            (&[0x30], None),
            (&[], None),
        ] {
            assert_eq!(DerReader(der).take(tag::SEQUENCE), expected, "{der:?}");
        }
    }

    #[test]
    fn a_certificate_cut_anywhere_is_malformed() {
        let der = include_bytes!("../../../fuzz/corpus/certificate/version-1.der");
        assert!(Certificate::parse(der).is_some_and(|it| it.is_version_1));
        for cut in 0..der.len() {
            assert!(Certificate::parse(&der[..cut]).is_none(), "cut at {cut}");
        }
    }
}
