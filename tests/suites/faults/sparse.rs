//! A guest whose memory is far larger than what its host's daemons may use.

use std::time::Instant;

use towpath_migrator::api::MigrationMode;
use towpath_protocol::size::Size;
use towpath_tests::lab::Guest;
use towpath_tests::scene::{LINK, Scene};
use towpath_tests::site::Place;

/// The most that each daemon may use, whatever the guest's size.
const DAEMON_KIB_MAX: u64 = 150 << 10;

/// A guest's memory: hundreds of times its content, so that a host with a few GiB has room for it
/// twice.
const MEMORY_MIB: u64 = 64 << 10;

#[test]
fn daemons_take_no_more_memory_for_a_large_guest() {
    let mut scene = Scene::new(LINK);
    for place in Place::ALL {
        let site = scene.lab.site_mut(place);
        site.reconfigure_migrator(|config| {
            config.quota.memory = Size::from_bytes(MEMORY_MIB << 21);
        });
    }
    let guest = Guest {
        working_set_mib: Some(32),
        ..Guest::new("large", MEMORY_MIB)
    };
    let mut console = scene.guest(&guest);
    let begun = Instant::now();
    scene.begin(&guest, MigrationMode::Auto).unwrap();
    let rest = scene.arrives(&guest, &mut console).unwrap();
    assert_eq!(rest.moves[0].attempts, Some(1), "{:?}", rest.moves);
    for place in Place::ALL {
        let peaks = scene.lab.site(place).peaks_kib();
        println!("{place:?} after {:?}: {peaks:?} KiB", begun.elapsed());
        for peak in peaks {
            assert!(peak <= DAEMON_KIB_MAX, "{place:?}: {peak} KiB");
        }
    }
}
