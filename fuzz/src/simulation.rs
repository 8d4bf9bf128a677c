//! Files of `skep simulate`: recorded arrivals, measured latencies.

use std::time::Duration;

use skep_sim::{Arrivals, LatencyTable, RandomPurpose, RandomStream, RecordedArrivals};

/// A recording that is taken gives as many moments as are asked for, in order.
pub fn recording(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(recording) = RecordedArrivals::parse(text) {
        let mut random = RandomStream::new(0, RandomPurpose::Arrivals);
        let moments = Arrivals::Recorded(recording).generate(100.0, 200, &mut random);
        assert_eq!(moments.len(), 200);
        assert!(moments.is_sorted());
        // Two seconds, to the nanosecond.
        assert!(moments[199].as_nanos().abs_diff(2_000_000_000) <= 1);
    }
    // The same bytes as rates.
    if let Ok(recording) = RecordedArrivals::rates(text, 60.0) {
        let mut random = RandomStream::new(0, RandomPurpose::Arrivals);
        let moments = Arrivals::Recorded(recording).generate(100.0, 200, &mut random);
        assert_eq!(moments.len(), 200);
        assert!(moments.is_sorted());
    }
}

/// In a table that is taken every batch takes some time.
pub fn table(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(table) = LatencyTable::measured(text, 40) {
        assert!((1..=40).all(|batch| table.latency(batch) > Duration::ZERO));
    }
}
