//! What mode nftables leaves: the tables `kube-proxy`.

use nft::{Connection, Error, Family, TableInfo, Transaction};
use tracing::info;

use super::CleanupError;

/// The name of kube-proxy's tables; their families are `ip` and `ip6`, never `inet`.
const TABLE: &str = "kube-proxy";

/// Removes the tables, each in a transaction of its own.
pub(super) fn remove(errors: &mut Vec<CleanupError>) {
    let (mut connection, tables) = match Connection::open().and_then(|mut open| open.tables().map(|all| (open, all))) {
        Ok(opened) => opened,
        // Where there is no nf_tables there are no tables.
        Err(Error::Unavailable(_)) => return,
        Err(error) => return errors.push(error.into()),
    };
    let theirs = |info: &&TableInfo| info.name == TABLE && matches!(info.family, Family::Ip | Family::Ip6);
    for info in tables.iter().filter(theirs) {
        match remove_one(&mut connection, info) {
            Ok(()) => info!(family = %info.family, table = TABLE, "removed kube-proxy's nftables table"),
            Err(error) => errors.push(error.into()),
        }
    }
}

fn remove_one(connection: &mut Connection, info: &TableInfo) -> Result<(), Error> {
    if let Some(port) = info.owner {
        return Err(Error::Owned { family: info.family, table: info.name.clone(), port });
    }
    let mut transaction = Transaction::new();
    transaction.delete_table(info.family, TABLE);
    connection.commit(&transaction)
}
