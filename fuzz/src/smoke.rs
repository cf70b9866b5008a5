//! A short run of every entry without a fuzzer: seeds, mutated seeds, and noise.

use crate::seeds;
use crate::{AS_IT_IS, Entry, IN_A_FRAME};

/// Longest input made: longer than two of the wire's smaller frames, and short enough for a fast
/// run.
const INPUT_BYTES_MAX: usize = 20_000;

/// Most mutations of one input: more make noise, and noise is refused at once.
const MISTAKES_MAX: usize = 6;

/// Numbers at which lengths, counts and offsets tend to go wrong.
const EDGES: [u64; 10] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX,
];

/// Gives an entry `count` inputs that depend on `seed` alone. Returns how many were valid.
pub fn run(target: &str, entry: Entry, seed: u64, count: usize) -> usize {
    let seeds = seeds::of(target);
    let mut dice = Dice(seed | 1);
    (0..count)
        .filter(|_| entry(&input(&mut dice, &seeds)))
        .count()
}

fn input(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    if dice.below(8) == 0 || seeds.is_empty() {
        return noise(dice);
    }
    let mut bytes = seeds[dice.below(seeds.len())].clone();
    for _ in 0..=dice.below(MISTAKES_MAX) {
        mistake(dice, &mut bytes, seeds);
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

fn noise(dice: &mut Dice) -> Vec<u8> {
    let length = dice.below(400);
    let how = if dice.below(2) == 0 {
        AS_IT_IS
    } else {
        IN_A_FRAME
    };
    let kind = u8::try_from(dice.below(80)).unwrap_or_default();
    let rest = (0..length).map(|_| dice.byte());
    [how, kind].into_iter().chain(rest).collect()
}

fn mistake(dice: &mut Dice, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    if bytes.is_empty() {
        bytes.push(dice.byte());
    }
    let at = dice.below(bytes.len());
    match dice.below(8) {
        0 => bytes[at] ^= 1 << dice.below(8),
        1 => bytes[at] = dice.byte(),
        2 => bytes.insert(at, dice.byte()),
        3 => drop(bytes.remove(at)),
        4 => bytes.truncate(at),
        5 => {
            let width = [1, 2, 4, 8][dice.below(4)];
            let edge = EDGES[dice.below(EDGES.len())].to_le_bytes();
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&edge[..end - at]);
        }
        6 => {
            // Insert a part of this input again, at a random place.
            let end = at + dice.below((bytes.len() - at).min(64) + 1);
            let part = bytes[at..end].to_vec();
            let to = dice.below(bytes.len());
            bytes.splice(to..to, part);
        }
        _ => {
            // Append the end of another seed.
            let other = &seeds[dice.below(seeds.len())];
            bytes.truncate(at);
            bytes.extend_from_slice(&other[at.min(other.len())..]);
        }
    }
}

/// Seeded random numbers (xorshift64*).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from((self.next() >> 16) % end as u64).expect("below a usize")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }
}
