//! What handlers take out of a request: its query as a map, its path, and who asks for what; a problem instead of
//! axum's own answer if it is not there.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::access::Client;
use super::hub::Hub;
use super::refusal::Refusal;

/// `?name=value&...`; the last value of a name counts.
pub struct Query(pub HashMap<String, String>);

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Query, Refusal> {
        match axum::extract::Query::<HashMap<String, String>>::try_from_uri(&parts.uri) {
            Ok(query) => Ok(Query(query.0)),
            Err(_) => {
                let detail = "The query cannot be read: it must be name=value pairs in UTF-8, percent-encoded.";
                Err(Refusal::new("invalid_field", detail).about("query", "name=value&name=value"))
            }
        }
    }
}

/// The `{id}` of a path, and whatever else it has.
pub struct Path<T>(pub T);

impl<S: Sync + Send, T: serde::de::DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Path<T>, Refusal> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(path) => Ok(Path(path.0)),
            Err(_) => Err(Refusal::new("not_found", "There is nothing at this path.")),
        }
    }
}

/// Most requests are about one thing: who asks, and the `{id}` in the path.
pub struct Of {
    pub hub: Arc<Hub>,
    pub client: Client,
    pub id: String,
}

impl FromRequestParts<Arc<Hub>> for Of {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, hub: &Arc<Hub>) -> Result<Of, Refusal> {
        let Path(id) = Path::from_request_parts(parts, hub).await?;
        let client = parts.extensions.get::<Client>().cloned();
        let client = client.ok_or_else(|| Refusal::new("internal", "The request has no client."))?;
        Ok(Of { hub: hub.clone(), client, id })
    }
}
