//! Sets of capabilities: fields that hold them as the bits of a number, and the names of the bits.

use sumun_proto::FieldId;
use sumun_proto::view::CAPABILITIES;

use crate::problem::did_you_mean;

/// True of a field whose bits are capabilities.
pub(crate) fn is_set(field: FieldId) -> bool {
    field.info().unit == "capabilities"
}

/// The number that a name stands for, in upper or lower case as capabilities(7) and the kernel's tools write it.
///
/// # Errors
/// What is wrong with it, and what there is.
pub(crate) fn number(name: &str) -> Result<u8, String> {
    let lower = name.to_ascii_lowercase();
    let names = || CAPABILITIES.iter().map(|(_, name)| *name);
    let place = names().position(|known| known == lower);
    place
        .and_then(|place| u8::try_from(place).ok())
        .ok_or_else(|| {
            let near = did_you_mean(&lower, names());
            let all = names().collect::<Vec<_>>().join(", ");
            format!("unknown capability {name:?}{near}: there are {all}")
        })
}

/// The name of a number; newer kernels may have more of them than are known here.
pub(crate) fn name(number: u8) -> Option<&'static str> {
    CAPABILITIES.get(usize::from(number)).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_stands_at_the_place_of_its_bit() {
        for (place, (bit, known)) in (0_u8..).zip(CAPABILITIES) {
            assert_eq!((1 << place, *known), (*bit, name(place).expect("a name")));
            assert_eq!(number(&known.to_ascii_uppercase()), Ok(place));
        }
        assert_eq!(name(63), None);
    }
}
