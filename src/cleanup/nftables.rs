//! What mode nftables leaves: the tables `kube-proxy`.

use nft::{Connection, Family, Transaction};
use tracing::info;

/// The name of kube-proxy's tables; their families are `ip` and `ip6`, never `inet`.
const TABLE: &str = "kube-proxy";

/// Removes the tables, each in a transaction of its own.
pub(super) fn remove() -> Result<(), nft::Error> {
    let mut connection = Connection::open()?;
    let theirs = |info: &nft::TableInfo| info.name == TABLE && matches!(info.family, Family::Ip | Family::Ip6);
    for info in connection.tables()?.into_iter().filter(theirs) {
        if let Some(port) = info.owner {
            return Err(nft::Error::Owned { family: info.family, table: info.name, port });
        }
        let mut transaction = Transaction::new();
        transaction.delete_table(info.family, TABLE);
        connection.commit(&transaction)?;
        info!(family = %info.family, table = TABLE, "removed kube-proxy's nftables table");
    }
    Ok(())
}
