//! Revocation lists that cannot be used, beside other files that can.

use std::fs;

use crate::harness::trust::{all_flow, carry_list, end_all, lasting, loaded_pair, says, serial};
use towpath_certs::authority::LEAF_VALIDITY;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t11_a_list_that_cannot_be_used_keeps_no_renewed_certificate_out() {
    let (pair, loads, echo) = loaded_pair(None).await;
    let (config, region) = (&pair.region_config, &pair.region);
    let files = &config.certificates;
    let crl = files.crl.as_ref().unwrap();
    for content in [Some("no list at all"), None] {
        match content {
            Some(content) => fs::write(crl, content).unwrap(),
            None => fs::remove_file(crl).unwrap(),
        }
        says(region, |view| view.problem.is_some()).await;
        let folder = format!("next-{}", content.is_some());
        let next = pair
            .world
            .issue_for("region", lasting(LEAF_VALIDITY), &folder);
        fs::copy(&next.key, &files.key).unwrap();
        fs::copy(&next.cert, &files.cert).unwrap();
        let wanted = serial(config);
        // The fault is still reported, and the known list stays in use.
        says(region, |view| {
            let is_kept = view.revocation_lists.len() == 1 && view.revocation_lists[0].number == 1;
            view.serial == wanted && view.problem.is_some() && is_kept
        })
        .await;
        all_flow(&loads).await;
        carry_list(&pair.world.path("ca"), config);
        says(region, |view| view.problem.is_none()).await;
    }
    end_all(loads).await;
    echo.abort();
}
