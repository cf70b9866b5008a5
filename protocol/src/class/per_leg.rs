//! One value for each leg of a link.

use std::ops::{Index, IndexMut};

use super::Leg;

/// One value for each leg of a link, found by the leg's name rather than by a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerLeg<T> {
    /// The value of [`Leg::Urgent`].
    pub urgent: T,
    /// The value of [`Leg::Bulk`].
    pub bulk: T,
}

impl<T> PerLeg<T> {
    /// Makes the value of each leg.
    pub fn of(mut make: impl FnMut(Leg) -> T) -> Self {
        Self {
            urgent: make(Leg::Urgent),
            bulk: make(Leg::Bulk),
        }
    }

    /// Converts both values.
    pub fn map<U>(self, mut convert: impl FnMut(T) -> U) -> PerLeg<U> {
        PerLeg {
            urgent: convert(self.urgent),
            bulk: convert(self.bulk),
        }
    }

    /// References to both values.
    #[must_use]
    pub const fn each_ref(&self) -> PerLeg<&T> {
        PerLeg {
            urgent: &self.urgent,
            bulk: &self.bulk,
        }
    }

    /// Both values, the urgent one first.
    pub fn iter(&self) -> std::array::IntoIter<&T, 2> {
        [&self.urgent, &self.bulk].into_iter()
    }

    /// Both values, the urgent one first.
    pub fn iter_mut(&mut self) -> std::array::IntoIter<&mut T, 2> {
        [&mut self.urgent, &mut self.bulk].into_iter()
    }
}

impl<T> IntoIterator for PerLeg<T> {
    type Item = T;
    type IntoIter = std::array::IntoIter<T, 2>;

    fn into_iter(self) -> Self::IntoIter {
        [self.urgent, self.bulk].into_iter()
    }
}

impl<T> Index<Leg> for PerLeg<T> {
    type Output = T;

    fn index(&self, leg: Leg) -> &T {
        match leg {
            Leg::Urgent => &self.urgent,
            Leg::Bulk => &self.bulk,
        }
    }
}

impl<T> IndexMut<Leg> for PerLeg<T> {
    fn index_mut(&mut self, leg: Leg) -> &mut T {
        match leg {
            Leg::Urgent => &mut self.urgent,
            Leg::Bulk => &mut self.bulk,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_its_leg_in_whatever_order_it_was_made() {
        let mut names = PerLeg::of(Leg::as_str);
        for leg in Leg::ALL {
            assert_eq!(names[leg], leg.as_str());
        }
        names[Leg::Bulk] = "another";
        assert_eq!((names.urgent, names.bulk), ("urgent", "another"));
        assert!(names.iter().eq(&["urgent", "another"]));
        assert!(names.map(str::len).into_iter().eq([6, 7]));
    }
}
