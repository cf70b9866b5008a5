//! Decides which offers a target accepts.

use std::sync::Arc;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::{GuestConfig, GuestQuota, VCPU_COUNT_MAX};
use towpath_protocol::message::Prepare;

use super::TargetMove;
use crate::api::{MigrationView, Role};
use crate::engine::ground::Ground;
use crate::engine::lanes::check_trust;

impl TargetMove {
    /// Checks an offer before anything is built for it and before any state changes: up to here the
    /// peer has shown no more than that it knows the guest's id.
    pub(super) fn admit(&self, ground: &mut Ground, prepare: &Prepare) -> Result<(), Fault> {
        let shared = Arc::clone(&ground.shared);
        let config = GuestConfig::from_bytes(&prepare.config)?;
        config.check(&GuestQuota {
            memory_bytes_max: shared.config.quota.memory.bytes(),
            vcpu_count_max: VCPU_COUNT_MAX,
        })?;
        if config.id != ground.id || config.name != prepare.name {
            let detail = format!("guest {} is described as another", prepare.name);
            return Err(Fault::new(Code::Meta, detail));
        }
        config.check_spaces(&prepare.spaces)?;
        let setup = self.machine.setup();
        if self.ownership().lives_here() {
            let detail = format!("{} offers a guest that lives here", setup.source);
            return Err(Fault::new(Code::GuestExists, detail));
        }
        if let Some(known) = &ground.config
            && *known != config
        {
            let detail = format!(
                "guest {} is described as another than it was here",
                known.name
            );
            return Err(Fault::new(Code::Meta, detail));
        }
        let is_another =
            |view: &MigrationView| view.role == Role::Source || view.guest != prepare.name;
        if shared
            .board()
            .moves
            .get(&setup.migration)
            .is_some_and(is_another)
        {
            let id = setup.migration;
            let detail = format!(
                "{} offers a guest as move {id}, which is another",
                setup.source
            );
            return Err(Fault::new(Code::Meta, detail));
        }
        check_trust(&shared.config.tunnel_socket(), &shared.host.site)?;
        let is_new = ground.journal.is_none();
        if is_new {
            shared.check_share(&setup.source, ground.id)?;
        }
        shared.admit(&setup.source, ground.id, setup.attempt, config.memory_bytes)?;
        shared.claim_name(&config.name, ground.id)?;
        if is_new {
            shared.made_for(ground.id, Some(&setup.source));
        }
        ground.config = Some(config);
        Ok(())
    }
}
