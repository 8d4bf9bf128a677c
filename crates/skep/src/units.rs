//! Numbers for people.

/// Bytes with three digits that count.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    // What would be rounded to 1024 is one of the next.
    while value >= 1023.5 {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    let decimals = if value < 9.995 {
        2
    } else {
        usize::from(value < 99.95)
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_to_read() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10_229, "9.99 KiB"),
            (10_239, "10.0 KiB"),
            (1_048_575, "1.00 MiB"),
            (9_633_792, "9.19 MiB"),
            (386_684_496, "369 MiB"),
            (1 << 62, "4.00 EiB"),
        ] {
            assert_eq!(human(bytes), expected);
        }
    }
}
