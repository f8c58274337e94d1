//! `gamegendctl save` and `replay`: sessions as values. To go on from one is `play --from`.

use std::path::PathBuf;

use clap::Args;

use super::client::Client;
use super::{CtlError, full_id, generate, print};
use crate::proto::api::{DaemonStatus, GenerateReply, SessionStatus};

/// Which session is meant.
#[derive(Debug, Args)]
pub struct Which {
    /// Id, or the beginning of one.
    id: String,
}

/// Where its video goes.
#[derive(Debug, Args)]
pub struct Replay {
    #[command(flatten)]
    which: Which,
    /// File to write.
    #[arg(short, long = "output", value_name = "FILE")]
    output: PathBuf,
}

impl Which {
    /// The routes of the session.
    async fn routes(&self, client: &Client) -> Result<String, CtlError> {
        let status: DaemonStatus = client.get_json("/api/v1/status").await?;
        Ok(format!("/api/v1/sessions/{}", full_id(&status.sessions, &self.id)?))
    }
}

/// Keeps the newest state of a session and prints its id.
pub async fn save(client: &Client, which: &Which) -> Result<(), CtlError> {
    let route = format!("{}/snapshot", which.routes(client).await?);
    let kept: SessionStatus = client.post_json(&route, &serde_json::json!({})).await?;
    print(&format!("{}\n", kept.id));
    Ok(())
}

/// Makes the video of a session again from its value. An interrupt cancels it.
pub async fn replay(client: &Client, replay: &Replay) -> Result<(), CtlError> {
    generate::check_writable(&replay.output)?;
    let route = format!("{}/replay", replay.which.routes(client).await?);
    let reply: GenerateReply = client.post_json(&route, &serde_json::json!({})).await?;
    generate::fetch(client, &reply, &replay.output).await
}
