//! The fields of an input.

/// Splits an input into `N` fields. Missing fields are empty. The last field holds the rest.
pub(crate) fn fields<const N: usize>(input: &[u8]) -> [&[u8]; N] {
    let mut given = input.splitn(N, |byte| *byte == 0xFF);
    std::array::from_fn(|_| given.next().unwrap_or_default())
}
