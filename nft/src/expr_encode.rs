//! How each [`Expr`] becomes a libnftnl expression object.
//!
//! Owns the names and attribute numbers of libnftnl; decides nothing. Values that libnftnl or the kernel would misread (too long
//! a prefix, a NUL in a name) are refused here, before they are sent. Proven by the kernel test `expressions`.

use nftnl::nftnl_sys as ffi;

use crate::error::{InvalidReason, name};
use crate::expr::{ChecksumKind, Expr, FibFlags, NatFlags, PayloadBase, Reg, Reject};
use crate::sys::ExprObject;
use crate::uapi;
use crate::verdict::Verdict;

impl Expr {
    /// libnftnl's (and the kernel's) name for it.
    fn object_name(&self) -> &'static std::ffi::CStr {
        match self {
            Self::PayloadLoad { .. } | Self::PayloadSet { .. } => c"payload",
            Self::MetaLoad { .. } | Self::MetaSet { .. } => c"meta",
            Self::CtLoad { .. } | Self::CtSet { .. } => c"ct",
            Self::Fib { .. } => c"fib",
            Self::Cmp { .. } => c"cmp",
            Self::Bitwise { .. } => c"bitwise",
            Self::Lookup { .. } => c"lookup",
            Self::Numgen { .. } => c"numgen",
            Self::Jhash { .. } | Self::Symhash { .. } => c"hash",
            Self::Dynset { .. } => c"dynset",
            Self::Nat { .. } => c"nat",
            Self::Masquerade { .. } => c"masq",
            Self::Redirect { .. } => c"redir",
            Self::Tproxy { .. } => c"tproxy",
            Self::Reject(_) => c"reject",
            Self::Counter { .. } => c"counter",
            Self::Objref { .. } | Self::ObjrefMap { .. } => c"objref",
            Self::Connlimit { .. } => c"connlimit",
            Self::Limit { .. } => c"limit",
            Self::Immediate { .. } | Self::Verdict(_) => c"immediate",
            Self::Range { .. } => c"range",
            Self::Log { .. } => c"log",
            Self::Notrack => c"notrack",
        }
    }

    /// The kernel's name for it, as [`crate::RuleInfo::exprs`] has it.
    pub fn kernel_name(&self) -> &'static str {
        self.object_name().to_str().expect("the names above are ASCII")
    }

    /// The object, filled.
    pub(crate) fn object(&self) -> Result<ExprObject, InvalidReason> {
        let kind = self.object_name();
        let mut object =
            ExprObject::new(kind).ok_or_else(|| InvalidReason::UnknownExpr(kind.to_string_lossy().into_owned()))?;
        let o = &mut object;
        match self {
            Self::PayloadLoad { base, offset, len, dreg } => {
                reg(o, ffi::NFTNL_EXPR_PAYLOAD_DREG, *dreg);
                payload(o, *base, *offset, *len);
            }
            Self::PayloadSet { base, offset, len, sreg, checksum } => {
                reg(o, ffi::NFTNL_EXPR_PAYLOAD_SREG, *sreg);
                payload(o, *base, *offset, *len);
                if let Some(checksum) = checksum {
                    let kind = match checksum.kind {
                        ChecksumKind::Inet => 1,
                        ChecksumKind::Sctp => 2,
                    };
                    o.u32(ffi::NFTNL_EXPR_PAYLOAD_CSUM_TYPE, kind);
                    o.u32(ffi::NFTNL_EXPR_PAYLOAD_CSUM_OFFSET, checksum.offset);
                    if checksum.pseudo_header {
                        o.u32(ffi::NFTNL_EXPR_PAYLOAD_FLAGS, uapi::NFT_PAYLOAD_L4CSUM_PSEUDOHDR);
                    }
                }
            }
            Self::MetaLoad { key, dreg } => {
                o.u32(ffi::NFTNL_EXPR_META_KEY, *key as u32);
                reg(o, ffi::NFTNL_EXPR_META_DREG, *dreg);
            }
            Self::MetaSet { key, sreg } => {
                o.u32(ffi::NFTNL_EXPR_META_KEY, *key as u32);
                reg(o, ffi::NFTNL_EXPR_META_SREG, *sreg);
            }
            Self::CtLoad { key, direction, dreg } => {
                o.u32(ffi::NFTNL_EXPR_CT_KEY, *key as u32);
                reg(o, ffi::NFTNL_EXPR_CT_DREG, *dreg);
                if let Some(direction) = direction {
                    o.u8(ffi::NFTNL_EXPR_CT_DIR, *direction as u8);
                }
            }
            Self::CtSet { key, sreg } => {
                o.u32(ffi::NFTNL_EXPR_CT_KEY, *key as u32);
                reg(o, ffi::NFTNL_EXPR_CT_SREG, *sreg);
            }
            Self::Fib { result, flags, dreg } => {
                reg(o, ffi::NFTNL_EXPR_FIB_DREG, *dreg);
                o.u32(ffi::NFTNL_EXPR_FIB_RESULT, *result as u32);
                o.u32(ffi::NFTNL_EXPR_FIB_FLAGS, flags.bits());
            }
            Self::Cmp { sreg, op, data } => {
                reg(o, ffi::NFTNL_EXPR_CMP_SREG, *sreg);
                o.u32(ffi::NFTNL_EXPR_CMP_OP, *op as u32);
                o.value(ffi::NFTNL_EXPR_CMP_DATA, data.as_bytes());
            }
            Self::Bitwise { sreg, dreg, mask, xor } => {
                reg(o, ffi::NFTNL_EXPR_BITWISE_SREG, *sreg);
                reg(o, ffi::NFTNL_EXPR_BITWISE_DREG, *dreg);
                o.u32(ffi::NFTNL_EXPR_BITWISE_LEN, mask.len() as u32);
                o.value(ffi::NFTNL_EXPR_BITWISE_MASK, mask.as_bytes());
                o.value(ffi::NFTNL_EXPR_BITWISE_XOR, xor.as_bytes());
            }
            Self::Lookup { set, sreg, dreg, inverted } => {
                o.str(ffi::NFTNL_EXPR_LOOKUP_SET, &name(set)?);
                reg(o, ffi::NFTNL_EXPR_LOOKUP_SREG, *sreg);
                optional(o, ffi::NFTNL_EXPR_LOOKUP_DREG, *dreg);
                if *inverted {
                    o.u32(ffi::NFTNL_EXPR_LOOKUP_FLAGS, uapi::NFT_LOOKUP_F_INV);
                }
            }
            Self::Numgen { kind, modulus, offset, dreg } => {
                reg(o, ffi::NFTNL_EXPR_NG_DREG, *dreg);
                o.u32(ffi::NFTNL_EXPR_NG_MODULUS, *modulus);
                o.u32(ffi::NFTNL_EXPR_NG_TYPE, *kind as u32);
                o.u32(ffi::NFTNL_EXPR_NG_OFFSET, *offset);
            }
            Self::Jhash { sreg, len, modulus, seed, offset, dreg } => {
                reg(o, ffi::NFTNL_EXPR_HASH_SREG, *sreg);
                o.u32(ffi::NFTNL_EXPR_HASH_LEN, *len);
                if let Some(seed) = seed {
                    o.u32(ffi::NFTNL_EXPR_HASH_SEED, *seed);
                }
                hash(o, 0, *modulus, *offset, *dreg);
            }
            Self::Symhash { modulus, offset, dreg } => hash(o, 1, *modulus, *offset, *dreg),
            Self::Dynset { op, set, key, data, timeout, stateful } => {
                o.u32(ffi::NFTNL_EXPR_DYNSET_OP, *op as u32);
                o.str(ffi::NFTNL_EXPR_DYNSET_SET_NAME, &name(set)?);
                reg(o, ffi::NFTNL_EXPR_DYNSET_SREG_KEY, *key);
                optional(o, ffi::NFTNL_EXPR_DYNSET_SREG_DATA, *data);
                if let Some(timeout) = timeout {
                    o.u64(ffi::NFTNL_EXPR_DYNSET_TIMEOUT, timeout.as_millis() as u64);
                }
                if let Some(stateful) = stateful {
                    o.nest(ffi::NFTNL_EXPR_DYNSET_EXPR, stateful.object()?);
                }
            }
            Self::Nat { kind, family, addr, addr_max, port, port_max, flags } => {
                o.u32(ffi::NFTNL_EXPR_NAT_TYPE, *kind as u32);
                o.u32(ffi::NFTNL_EXPR_NAT_FAMILY, family.number().into());
                optional(o, ffi::NFTNL_EXPR_NAT_REG_ADDR_MIN, *addr);
                optional(o, ffi::NFTNL_EXPR_NAT_REG_ADDR_MAX, *addr_max);
                optional(o, ffi::NFTNL_EXPR_NAT_REG_PROTO_MIN, *port);
                optional(o, ffi::NFTNL_EXPR_NAT_REG_PROTO_MAX, *port_max);
                if flags.bits() != 0 {
                    o.u32(ffi::NFTNL_EXPR_NAT_FLAGS, flags.bits());
                }
            }
            Self::Masquerade { flags } => {
                if flags.bits() != 0 {
                    o.u32(ffi::NFTNL_EXPR_MASQ_FLAGS, flags.bits());
                }
            }
            Self::Redirect { port, flags } => {
                optional(o, ffi::NFTNL_EXPR_REDIR_REG_PROTO_MIN, *port);
                if flags.bits() != 0 {
                    o.u32(ffi::NFTNL_EXPR_REDIR_FLAGS, flags.bits());
                }
            }
            Self::Tproxy { family, addr, port } => {
                o.u32(ffi::NFTNL_EXPR_TPROXY_FAMILY, family.number().into());
                optional(o, ffi::NFTNL_EXPR_TPROXY_REG_ADDR, *addr);
                optional(o, ffi::NFTNL_EXPR_TPROXY_REG_PORT, *port);
            }
            Self::Reject(reject) => {
                let (kind, code) = match *reject {
                    Reject::Icmp(code) | Reject::Icmpv6(code) => (libc::NFT_REJECT_ICMP_UNREACH, code),
                    Reject::Icmpx(code) => (libc::NFT_REJECT_ICMPX_UNREACH, code),
                    Reject::TcpReset => (libc::NFT_REJECT_TCP_RST, 0),
                };
                o.u32(ffi::NFTNL_EXPR_REJECT_TYPE, kind as u32);
                o.u8(ffi::NFTNL_EXPR_REJECT_CODE, code);
            }
            Self::Counter { packets, bytes } => {
                o.u64(ffi::NFTNL_EXPR_CTR_PACKETS, *packets);
                o.u64(ffi::NFTNL_EXPR_CTR_BYTES, *bytes);
            }
            Self::Objref { kind, name: own } => {
                o.u32(ffi::NFTNL_EXPR_OBJREF_IMM_TYPE, kind.number());
                o.str(ffi::NFTNL_EXPR_OBJREF_IMM_NAME, &name(own)?);
            }
            Self::ObjrefMap { set, sreg } => {
                reg(o, ffi::NFTNL_EXPR_OBJREF_SET_SREG, *sreg);
                o.str(ffi::NFTNL_EXPR_OBJREF_SET_NAME, &name(set)?);
            }
            Self::Connlimit { count, over } => {
                o.u32(ffi::NFTNL_EXPR_CONNLIMIT_COUNT, *count);
                o.u32(ffi::NFTNL_EXPR_CONNLIMIT_FLAGS, if *over { uapi::NFT_CONNLIMIT_F_INV } else { 0 });
            }
            Self::Limit { rate, unit, burst, over } => {
                o.u64(ffi::NFTNL_EXPR_LIMIT_RATE, *rate);
                o.u64(ffi::NFTNL_EXPR_LIMIT_UNIT, unit.seconds());
                o.u32(ffi::NFTNL_EXPR_LIMIT_BURST, *burst);
                o.u32(ffi::NFTNL_EXPR_LIMIT_TYPE, 0);
                o.u32(ffi::NFTNL_EXPR_LIMIT_FLAGS, if *over { uapi::NFT_LIMIT_F_INV } else { 0 });
            }
            Self::Immediate { dreg, data } => {
                reg(o, ffi::NFTNL_EXPR_IMM_DREG, *dreg);
                o.value(ffi::NFTNL_EXPR_IMM_DATA, data.as_bytes());
            }
            Self::Verdict(verdict) => decide(o, verdict)?,
            Self::Range { sreg, negated, from, to } => {
                reg(o, ffi::NFTNL_EXPR_RANGE_SREG, *sreg);
                o.u32(ffi::NFTNL_EXPR_RANGE_OP, (*negated).into());
                o.value(ffi::NFTNL_EXPR_RANGE_FROM_DATA, from.as_bytes());
                o.value(ffi::NFTNL_EXPR_RANGE_TO_DATA, to.as_bytes());
            }
            Self::Log { prefix, group } => {
                if let Some(prefix) = prefix {
                    // NF_LOG_PREFIXLEN (linux/netfilter/nf_log.h) with its NUL.
                    if prefix.len() > 127 {
                        return Err(InvalidReason::Name(prefix.clone()));
                    }
                    o.str(ffi::NFTNL_EXPR_LOG_PREFIX, &name(prefix)?);
                }
                if let Some(group) = group {
                    o.u16(ffi::NFTNL_EXPR_LOG_GROUP, *group);
                }
            }
            Self::Notrack => {}
        }
        Ok(object)
    }
}

impl FibFlags {
    /// `NFTA_FIB_F_*`
    fn bits(self) -> u32 {
        [self.saddr, self.daddr, self.mark, self.iif, self.oif]
            .into_iter()
            .enumerate()
            .fold(0, |bits, (shift, set)| bits | u32::from(set) << shift)
    }
}

impl NatFlags {
    fn bits(self) -> u32 {
        (if self.random { uapi::NF_NAT_RANGE_PROTO_RANDOM } else { 0 })
            | (if self.persistent { uapi::NF_NAT_RANGE_PERSISTENT } else { 0 })
            | (if self.fully_random { uapi::NF_NAT_RANGE_PROTO_RANDOM_FULLY } else { 0 })
    }
}

fn reg(object: &mut ExprObject, attribute: u32, reg: Reg) {
    object.u32(attribute, reg.number());
}

fn optional(object: &mut ExprObject, attribute: u32, wanted: Option<Reg>) {
    if let Some(wanted) = wanted {
        reg(object, attribute, wanted);
    }
}

fn payload(object: &mut ExprObject, base: PayloadBase, offset: u32, len: u32) {
    object.u32(ffi::NFTNL_EXPR_PAYLOAD_BASE, base as u32);
    object.u32(ffi::NFTNL_EXPR_PAYLOAD_OFFSET, offset);
    object.u32(ffi::NFTNL_EXPR_PAYLOAD_LEN, len);
}

/// `kind` is `enum nft_hash_types`.
fn hash(object: &mut ExprObject, kind: u32, modulus: u32, offset: u32, dreg: Reg) {
    reg(object, ffi::NFTNL_EXPR_HASH_DREG, dreg);
    object.u32(ffi::NFTNL_EXPR_HASH_MODULUS, modulus);
    object.u32(ffi::NFTNL_EXPR_HASH_TYPE, kind);
    object.u32(ffi::NFTNL_EXPR_HASH_OFFSET, offset);
}

fn decide(object: &mut ExprObject, verdict: &Verdict) -> Result<(), InvalidReason> {
    reg(object, ffi::NFTNL_EXPR_IMM_DREG, Reg::VERDICT);
    object.u32(ffi::NFTNL_EXPR_IMM_VERDICT, verdict.code() as u32);
    if let Some(chain) = verdict.chain() {
        object.str(ffi::NFTNL_EXPR_IMM_CHAIN, &name(chain)?);
    }
    Ok(())
}
