//! Memory for output, charged before it is allocated.

use skep_tensor::{Charge, OverBudget};

/// The least growth of a buffer, so that small ones do not grow often.
const MIN_GROWTH_BYTES: usize = 1 << 10;

/// Makes room for `more` bytes behind what is in `bytes`. The growth is charged first. The buffer doubles, so each byte
/// is copied about twice on average.
///
/// # Errors
/// [`OverBudget`] if it does not fit, or the system is out of memory; nothing has changed then.
pub(crate) fn make_room(
    bytes: &mut Vec<u8>,
    more: usize,
    charge: &Charge,
) -> Result<(), OverBudget> {
    if bytes.capacity() - bytes.len() >= more {
        return Ok(());
    }
    let growth = more.max(bytes.len()).max(MIN_GROWTH_BYTES);
    charge.add(growth)?;
    let before = bytes.capacity();
    if bytes.try_reserve_exact(growth).is_err() {
        charge.give_back(growth);
        return Err(OverBudget::of_system(growth));
    }
    // Capacity that was free before counts as part of the room.
    charge.give_back(growth.saturating_sub(bytes.capacity() - before));
    Ok(())
}

#[cfg(test)]
mod tests {
    use skep_tensor::MemoryBudget;

    use super::*;

    #[test]
    fn growth_is_charged_and_doubles() {
        let budget = MemoryBudget::new(10_000);
        let charge = budget.charge();
        let mut bytes = Vec::new();
        let mut growths = 0;
        for _ in 0..4000 {
            let before = bytes.capacity();
            make_room(&mut bytes, 1, &charge).expect("room");
            bytes.push(0);
            growths += usize::from(bytes.capacity() != before);
            assert_eq!(charge.bytes(), bytes.capacity());
        }
        assert!(growths <= 3, "{growths}");
        let capacity = bytes.capacity();
        assert!(make_room(&mut bytes, 10_000, &charge).is_err());
        assert_eq!((charge.bytes(), bytes.capacity()), (capacity, capacity));
        drop(charge);
        assert_eq!(budget.used(), 0);
    }
}
