//! Generated names: five letters and digits that cannot spell words nor be confused.

use rand::Rng;

const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// `prefix` and five random characters.
pub fn generate(prefix: &str) -> String {
    let mut random = rand::rng();
    let mut name = prefix.to_owned();
    name.extend((0..5).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])));
    name
}
