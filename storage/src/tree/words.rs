//! Comparisons of keys, a word of eight bytes at a time.
//!
//! Internal keys are a few words long and mostly differ near their ends: the call of a comparison that is made for any length costs
//! as much as all the rest of it. Each function here says the same as the one of slices that it stands for.

use std::cmp::Ordering;

const WORD: usize = size_of::<u64>();

/// The words of both side by side, and what is left behind the shorter one's last.
#[inline]
fn words<'a>(left: &'a [u8], right: &'a [u8]) -> impl Iterator<Item = (u64, u64)> + use<'a> {
    let word = |bytes: &[u8; WORD]| u64::from_be_bytes(*bytes);
    left.as_chunks()
        .0
        .iter()
        .zip(right.as_chunks().0)
        .map(move |(left, right)| (word(left), word(right)))
}

/// Which one is first in the order of bytes.
#[inline]
pub(super) fn compare(left: &[u8], right: &[u8]) -> Ordering {
    let mut at = 0;
    for (left, right) in words(left, right) {
        if left != right {
            return left.cmp(&right);
        }
        at += WORD;
    }
    left[at..].cmp(&right[at..])
}

/// Whether both are the same.
#[inline]
pub(super) fn equal(left: &[u8], right: &[u8]) -> bool {
    // The last words first: keys that follow each other differ near their ends. They overlap what is compared before.
    match (left.last_chunk::<WORD>(), right.last_chunk::<WORD>()) {
        (Some(left_end), Some(right_end)) => {
            left_end == right_end
                && left.len() == right.len()
                && words(left, right).all(|(left, right)| left == right)
        }
        _ => left == right,
    }
}

/// Whether `bytes` begins with `prefix`.
#[inline]
pub(super) fn starts_with(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.get(..prefix.len()).is_some_and(|bytes| equal(bytes, prefix))
}

/// How many bytes both begin with.
#[inline]
pub(super) fn common_prefix(left: &[u8], right: &[u8]) -> usize {
    let mut at = 0;
    for (left, right) in words(left, right) {
        if left != right {
            return at + (left ^ right).leading_zeros() as usize / 8;
        }
        at += WORD;
    }
    let rest = left[at..].iter().zip(&right[at..]);
    at + rest.take_while(|(left, right)| left == right).count()
}

/// Whether one of the bytes is zero.
#[inline]
pub(super) fn has_zero(bytes: &[u8]) -> bool {
    const ONES: u64 = u64::MAX / 0xff;
    let (words, rest) = bytes.as_chunks::<WORD>();
    // The least byte that is zero gets a highest bit that it had not; those below it do not (Mycroft, 1987).
    let has = |word: u64| word.wrapping_sub(ONES) & !word & ONES << 7 != 0;
    words.iter().any(|word| has(u64::from_le_bytes(*word))) || rest.contains(&0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Few different bytes, so that much is the same, of lengths around those of words.
    fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![0, 1, 0x80, 0xff]), 0..30)
    }

    fn check(left: &[u8], right: &[u8]) {
        assert_eq!(compare(left, right), left.cmp(right));
        assert_eq!(equal(left, right), left == right);
        assert_eq!(starts_with(left, right), left.starts_with(right));
        let common = left.iter().zip(right).take_while(|(left, right)| left == right).count();
        assert_eq!(common_prefix(left, right), common);
        assert_eq!(has_zero(left), left.contains(&0));
    }

    proptest! {
        #[test]
        fn each_says_what_slices_say(shared in any_bytes(), left in any_bytes(), right in any_bytes()) {
            check(&left, &right);
            check(&[&shared[..], &left].concat(), &[&shared[..], &right].concat());
            check(&[&shared[..], &left].concat(), &shared);
        }
    }

    #[test]
    fn one_byte_anywhere_is_noticed() {
        for length in 0..40 {
            for differs in 0..length {
                let (left, mut right) = (vec![7; length], vec![7; length]);
                check(&left, &right);
                right[differs] = 8;
                check(&left, &right);
                check(&right, &left);
                check(&left, &right[..differs]);
                right[differs] = 0;
                check(&right, &left);
            }
        }
    }
}
