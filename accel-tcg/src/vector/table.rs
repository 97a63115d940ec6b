//! Which instruction does what.

use super::{Action, crypto, fp, int, moves, shuffle, strings, x87};
use Action::{Bin, BinImm, Special, Un, UnImm};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// Shifts have three forms: by an immediate, and with two or three operands by a register.
fn shift(i: &Instruction, by: Action, imm: Action) -> Action {
    if i.op_kind(i.op_count() - 1) == OpKind::Immediate8 { imm } else { by }
}

/// Chooses between an action of MMX blocks of 8 bytes and one of 16.
fn blocks(i: &Instruction, mmx: Action, other: Action) -> Action {
    if (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm()) {
        mmx
    } else {
        other
    }
}

macro_rules! blocked {
    ($i:ident, $k:ident $($p:ident)::+ [$($a:tt),*]) => {
        blocks($i, $k($($p)::+::<$($a,)* 8>), $k($($p)::+::<$($a,)* 16>))
    };
}

macro_rules! fma_rows {
    ($m:ident; $($n132:ident $n213:ident $n231:ident => $f:ident $size:literal $op:ident;)*) => {
        match $m {
            $(
                Mnemonic::$n132 => Some(Special(fp::$f::<$size, { fp::FORM_132 }, { fp::$op }>)),
                Mnemonic::$n213 => Some(Special(fp::$f::<$size, { fp::FORM_213 }, { fp::$op }>)),
                Mnemonic::$n231 => Some(Special(fp::$f::<$size, { fp::FORM_231 }, { fp::$op }>)),
            )*
            _ => None,
        }
    };
}

fn fma(m: Mnemonic) -> Option<Action> {
    fma_rows! { m;
        Vfmadd132ps Vfmadd213ps Vfmadd231ps => fma 4 MADD;
        Vfmadd132pd Vfmadd213pd Vfmadd231pd => fma 8 MADD;
        Vfmadd132ss Vfmadd213ss Vfmadd231ss => fma_scalar 4 MADD;
        Vfmadd132sd Vfmadd213sd Vfmadd231sd => fma_scalar 8 MADD;
        Vfmsub132ps Vfmsub213ps Vfmsub231ps => fma 4 MSUB;
        Vfmsub132pd Vfmsub213pd Vfmsub231pd => fma 8 MSUB;
        Vfmsub132ss Vfmsub213ss Vfmsub231ss => fma_scalar 4 MSUB;
        Vfmsub132sd Vfmsub213sd Vfmsub231sd => fma_scalar 8 MSUB;
        Vfnmadd132ps Vfnmadd213ps Vfnmadd231ps => fma 4 NMADD;
        Vfnmadd132pd Vfnmadd213pd Vfnmadd231pd => fma 8 NMADD;
        Vfnmadd132ss Vfnmadd213ss Vfnmadd231ss => fma_scalar 4 NMADD;
        Vfnmadd132sd Vfnmadd213sd Vfnmadd231sd => fma_scalar 8 NMADD;
        Vfnmsub132ps Vfnmsub213ps Vfnmsub231ps => fma 4 NMSUB;
        Vfnmsub132pd Vfnmsub213pd Vfnmsub231pd => fma 8 NMSUB;
        Vfnmsub132ss Vfnmsub213ss Vfnmsub231ss => fma_scalar 4 NMSUB;
        Vfnmsub132sd Vfnmsub213sd Vfnmsub231sd => fma_scalar 8 NMSUB;
        Vfmaddsub132ps Vfmaddsub213ps Vfmaddsub231ps => fma 4 MADDSUB;
        Vfmaddsub132pd Vfmaddsub213pd Vfmaddsub231pd => fma 8 MADDSUB;
        Vfmsubadd132ps Vfmsubadd213ps Vfmsubadd231ps => fma 4 MSUBADD;
        Vfmsubadd132pd Vfmsubadd213pd Vfmsubadd231pd => fma 8 MSUBADD;
    }
}

/// The action of an instruction, if it is one of vectors or the x87.
#[rustfmt::skip]
pub fn action(i: &Instruction) -> Option<Action> {
    use Mnemonic::*;
    if let Some(a) = fma(i.mnemonic()).or_else(|| floating(i)) {
        return Some(a);
    }
    Some(match i.mnemonic() {
        // Logic and moves of whole registers.
        Andps | Andpd | Pand | Vandps | Vandpd | Vpand => Bin(int::and),
        Andnps | Andnpd | Pandn | Vandnps | Vandnpd | Vpandn => Bin(int::andn),
        Orps | Orpd | Por | Vorps | Vorpd | Vpor => Bin(int::or),
        Xorps | Xorpd | Pxor | Vxorps | Vxorpd | Vpxor => Bin(int::xor),
        Movaps | Movups | Movapd | Movupd | Movdqa | Movdqu | Lddqu | Movntps | Movntpd | Movntdq | Movntdqa
        | Vmovaps | Vmovups | Vmovapd | Vmovupd | Vmovdqa | Vmovdqu | Vlddqu | Vmovntps | Vmovntpd | Vmovntdq
        | Vmovntdqa => Un(moves::copy),
        Movss | Vmovss => Special(moves::scalar::<4>),
        Movsd | Vmovsd => Special(moves::scalar::<8>),
        Movd | Vmovd => Special(moves::low::<4>),
        Movq | Vmovq | Movntq => Special(moves::low::<8>),
        Movq2dq | Movdq2q => Special(moves::between),
        Movlps | Movlpd | Vmovlps | Vmovlpd => Special(moves::quad::<0, 0>),
        Movhps | Movhpd | Vmovhps | Vmovhpd => Special(moves::quad::<0, 1>),
        Movhlps | Vmovhlps => Special(moves::quad::<1, 0>),
        Movlhps | Vmovlhps => Special(moves::quad::<0, 1>),
        Movddup | Vmovddup => Un(moves::dup8),
        Movsldup | Vmovsldup => Un(shuffle::dup_even::<4>),
        Movshdup | Vmovshdup => Un(shuffle::dup_odd::<4>),
        Movntss => Special(moves::low::<4>),
        Movntsd => Special(moves::low::<8>),
        Extrq => Special(moves::extrq),
        Insertq => Special(moves::insertq),
        Movmskps | Vmovmskps => Special(moves::mask::<4>),
        Movmskpd | Vmovmskpd => Special(moves::mask::<8>),
        Pmovmskb | Vpmovmskb => Special(moves::mask::<1>),
        Pextrb | Vpextrb => Special(moves::extract::<1>),
        Pextrw | Vpextrw => Special(moves::extract::<2>),
        Pextrd | Vpextrd | Extractps | Vextractps => Special(moves::extract::<4>),
        Pextrq | Vpextrq => Special(moves::extract::<8>),
        Pinsrb | Vpinsrb => Special(moves::insert::<1>),
        Pinsrw | Vpinsrw => Special(moves::insert::<2>),
        Pinsrd | Vpinsrd => Special(moves::insert::<4>),
        Pinsrq | Vpinsrq => Special(moves::insert::<8>),
        Insertps | Vinsertps => Special(moves::insertps),
        Ptest | Vptest => Special(moves::test::<{ !0 }>),
        Vtestps => Special(moves::test::<0x8000_0000_8000_0000>),
        Vtestpd => Special(moves::test::<0x8000_0000_0000_0000>),
        Emms => Special(moves::emms),
        Vzeroupper => Special(moves::zero::<false>),
        Vzeroall => Special(moves::zero::<true>),

        // Integer arithmetic.
        Paddb | Vpaddb => Bin(int::add::<1>), Paddw | Vpaddw => Bin(int::add::<2>),
        Paddd | Vpaddd => Bin(int::add::<4>), Paddq | Vpaddq => Bin(int::add::<8>),
        Psubb | Vpsubb => Bin(int::sub::<1>), Psubw | Vpsubw => Bin(int::sub::<2>),
        Psubd | Vpsubd => Bin(int::sub::<4>), Psubq | Vpsubq => Bin(int::sub::<8>),
        Paddsb | Vpaddsb => Bin(int::adds::<1>), Paddsw | Vpaddsw => Bin(int::adds::<2>),
        Paddusb | Vpaddusb => Bin(int::addus::<1>), Paddusw | Vpaddusw => Bin(int::addus::<2>),
        Psubsb | Vpsubsb => Bin(int::subs::<1>), Psubsw | Vpsubsw => Bin(int::subs::<2>),
        Psubusb | Vpsubusb => Bin(int::subus::<1>), Psubusw | Vpsubusw => Bin(int::subus::<2>),
        Pavgb | Vpavgb => Bin(int::avg::<1>), Pavgw | Vpavgw => Bin(int::avg::<2>),
        Pcmpeqb | Vpcmpeqb => Bin(int::cmpeq::<1>), Pcmpeqw | Vpcmpeqw => Bin(int::cmpeq::<2>),
        Pcmpeqd | Vpcmpeqd => Bin(int::cmpeq::<4>), Pcmpeqq | Vpcmpeqq => Bin(int::cmpeq::<8>),
        Pcmpgtb | Vpcmpgtb => Bin(int::cmpgt::<1>), Pcmpgtw | Vpcmpgtw => Bin(int::cmpgt::<2>),
        Pcmpgtd | Vpcmpgtd => Bin(int::cmpgt::<4>), Pcmpgtq | Vpcmpgtq => Bin(int::cmpgt::<8>),
        Pmaxsb | Vpmaxsb => Bin(int::maxs::<1>), Pmaxsw | Vpmaxsw => Bin(int::maxs::<2>),
        Pmaxsd | Vpmaxsd => Bin(int::maxs::<4>), Pminsb | Vpminsb => Bin(int::mins::<1>),
        Pminsw | Vpminsw => Bin(int::mins::<2>), Pminsd | Vpminsd => Bin(int::mins::<4>),
        Pmaxub | Vpmaxub => Bin(int::maxu::<1>), Pmaxuw | Vpmaxuw => Bin(int::maxu::<2>),
        Pmaxud | Vpmaxud => Bin(int::maxu::<4>), Pminub | Vpminub => Bin(int::minu::<1>),
        Pminuw | Vpminuw => Bin(int::minu::<2>), Pminud | Vpminud => Bin(int::minu::<4>),
        Pabsb | Vpabsb => Un(int::abs::<1>), Pabsw | Vpabsw => Un(int::abs::<2>), Pabsd | Vpabsd => Un(int::abs::<4>),
        Psignb | Vpsignb => Bin(int::sign::<1>), Psignw | Vpsignw => Bin(int::sign::<2>),
        Psignd | Vpsignd => Bin(int::sign::<4>),
        Pmullw | Vpmullw => Bin(int::mul_low::<2>), Pmulld | Vpmulld => Bin(int::mul_low::<4>),
        Pmulhw | Vpmulhw => Bin(int::mul_high), Pmulhuw | Vpmulhuw => Bin(int::mul_high_unsigned),
        Pmulhrsw | Vpmulhrsw => Bin(int::mul_high_rounded),
        Pmuludq | Vpmuludq => Bin(int::mul_even_unsigned), Pmuldq | Vpmuldq => Bin(int::mul_even),
        Pmaddwd | Vpmaddwd => Bin(int::madd), Pmaddubsw | Vpmaddubsw => Bin(int::madd_bytes),
        Psadbw | Vpsadbw => Bin(int::sad), Mpsadbw | Vmpsadbw => BinImm(int::mpsad),
        Phminposuw | Vphminposuw => Un(int::minpos),
        Phaddw | Vphaddw => blocked!(i, Bin int::hadd[2]), Phaddd | Vphaddd => blocked!(i, Bin int::hadd[4]),
        Phsubw | Vphsubw => blocked!(i, Bin int::hsub[2]), Phsubd | Vphsubd => blocked!(i, Bin int::hsub[4]),
        Phaddsw | Vphaddsw => blocked!(i, Bin int::hadds[]), Phsubsw | Vphsubsw => blocked!(i, Bin int::hsubs[]),
        Packsswb | Vpacksswb => blocked!(i, Bin int::pack_sswb[]),
        Packssdw | Vpackssdw => blocked!(i, Bin int::pack_ssdw[]),
        Packuswb | Vpackuswb => blocked!(i, Bin int::pack_uswb[]),
        Packusdw | Vpackusdw => blocked!(i, Bin int::pack_usdw[]),

        // Shifts.
        Psllw | Vpsllw => shift(i, Bin(int::sll::<2>), UnImm(int::slli::<2>)),
        Pslld | Vpslld => shift(i, Bin(int::sll::<4>), UnImm(int::slli::<4>)),
        Psllq | Vpsllq => shift(i, Bin(int::sll::<8>), UnImm(int::slli::<8>)),
        Psrlw | Vpsrlw => shift(i, Bin(int::srl::<2>), UnImm(int::srli::<2>)),
        Psrld | Vpsrld => shift(i, Bin(int::srl::<4>), UnImm(int::srli::<4>)),
        Psrlq | Vpsrlq => shift(i, Bin(int::srl::<8>), UnImm(int::srli::<8>)),
        Psraw | Vpsraw => shift(i, Bin(int::sra::<2>), UnImm(int::srai::<2>)),
        Psrad | Vpsrad => shift(i, Bin(int::sra::<4>), UnImm(int::srai::<4>)),
        Pslldq | Vpslldq => UnImm(int::slldq), Psrldq | Vpsrldq => UnImm(int::srldq),
        Vpsllvd => Bin(int::sllv::<4>), Vpsllvq => Bin(int::sllv::<8>),
        Vpsrlvd => Bin(int::srlv::<4>), Vpsrlvq => Bin(int::srlv::<8>), Vpsravd => Bin(int::srav::<4>),

        // Lanes that move.
        Punpcklbw | Vpunpcklbw => blocks(i, Bin(int::unpack::<1, 8, false>), Bin(int::unpack::<1, 16, false>)),
        Punpcklwd | Vpunpcklwd => blocks(i, Bin(int::unpack::<2, 8, false>), Bin(int::unpack::<2, 16, false>)),
        Punpckldq | Vpunpckldq => blocks(i, Bin(int::unpack::<4, 8, false>), Bin(int::unpack::<4, 16, false>)),
        Punpckhbw | Vpunpckhbw => blocks(i, Bin(int::unpack::<1, 8, true>), Bin(int::unpack::<1, 16, true>)),
        Punpckhwd | Vpunpckhwd => blocks(i, Bin(int::unpack::<2, 8, true>), Bin(int::unpack::<2, 16, true>)),
        Punpckhdq | Vpunpckhdq => blocks(i, Bin(int::unpack::<4, 8, true>), Bin(int::unpack::<4, 16, true>)),
        Punpcklqdq | Vpunpcklqdq | Unpcklpd | Vunpcklpd => Bin(int::unpack::<8, 16, false>),
        Punpckhqdq | Vpunpckhqdq | Unpckhpd | Vunpckhpd => Bin(int::unpack::<8, 16, true>),
        Unpcklps | Vunpcklps => Bin(int::unpack::<4, 16, false>),
        Unpckhps | Vunpckhps => Bin(int::unpack::<4, 16, true>),
        Pshufb | Vpshufb => blocks(i, Bin(shuffle::pshufb::<8>), Bin(shuffle::pshufb::<16>)),
        Pshufw => UnImm(shuffle::shuffle4::<2>), Pshufd | Vpshufd => UnImm(shuffle::shuffle4::<4>),
        Pshuflw | Vpshuflw => UnImm(shuffle::shuffle_words::<false>),
        Pshufhw | Vpshufhw => UnImm(shuffle::shuffle_words::<true>),
        Shufps | Vshufps => BinImm(shuffle::shufps), Shufpd | Vshufpd => BinImm(shuffle::shufpd),
        Palignr | Vpalignr => blocks(i, BinImm(shuffle::align::<8>), BinImm(shuffle::align::<16>)),
        Blendps | Vblendps | Vpblendd => BinImm(shuffle::blend::<4>),
        Blendpd | Vblendpd => BinImm(shuffle::blend::<8>),
        Pblendw | Vpblendw => BinImm(shuffle::blend::<2>),
        Blendvps | Vblendvps => Special(moves::blend_by::<4>),
        Blendvpd | Vblendvpd => Special(moves::blend_by::<8>),
        Pblendvb | Vpblendvb => Special(moves::blend_by::<1>),
        Vpermilps => shift(i, Bin(shuffle::permil4), UnImm(shuffle::shuffle4::<4>)),
        Vpermilpd => shift(i, Bin(shuffle::permil8), UnImm(shuffle::permil8i)),
        Vpermd | Vpermps => Bin(shuffle::permd), Vpermq | Vpermpd => UnImm(shuffle::permq),
        Vperm2f128 | Vperm2i128 => BinImm(shuffle::perm128),
        Vinsertf128 | Vinserti128 => BinImm(shuffle::insert128),
        Vextractf128 | Vextracti128 => Special(x128),
        Vbroadcastss | Vpbroadcastd => Un(shuffle::broadcast::<4>),
        Vbroadcastsd | Vpbroadcastq => Un(shuffle::broadcast::<8>),
        Vpbroadcastb => Un(shuffle::broadcast::<1>), Vpbroadcastw => Un(shuffle::broadcast::<2>),
        Vbroadcastf128 | Vbroadcasti128 => Un(shuffle::broadcast::<16>),
        Pmovsxbw | Vpmovsxbw => Un(int::widen::<1, 2, true>), Pmovsxbd | Vpmovsxbd => Un(int::widen::<1, 4, true>),
        Pmovsxbq | Vpmovsxbq => Un(int::widen::<1, 8, true>), Pmovsxwd | Vpmovsxwd => Un(int::widen::<2, 4, true>),
        Pmovsxwq | Vpmovsxwq => Un(int::widen::<2, 8, true>), Pmovsxdq | Vpmovsxdq => Un(int::widen::<4, 8, true>),
        Pmovzxbw | Vpmovzxbw => Un(int::widen::<1, 2, false>), Pmovzxbd | Vpmovzxbd => Un(int::widen::<1, 4, false>),
        Pmovzxbq | Vpmovzxbq => Un(int::widen::<1, 8, false>), Pmovzxwd | Vpmovzxwd => Un(int::widen::<2, 4, false>),
        Pmovzxwq | Vpmovzxwq => Un(int::widen::<2, 8, false>), Pmovzxdq | Vpmovzxdq => Un(int::widen::<4, 8, false>),

        // Strings, AES, SHA, GF(2).
        Pcmpestri | Pcmpestri64 | Vpcmpestri | Vpcmpestri64 => Special(strings::index::<true>),
        Pcmpistri | Vpcmpistri => Special(strings::index::<false>),
        Pcmpestrm | Pcmpestrm64 | Vpcmpestrm | Vpcmpestrm64 => Special(strings::mask::<true>),
        Pcmpistrm | Vpcmpistrm => Special(strings::mask::<false>),
        Aesenc | Vaesenc => Bin(crypto::enc), Aesenclast | Vaesenclast => Bin(crypto::enc_last),
        Aesdec | Vaesdec => Bin(crypto::dec), Aesdeclast | Vaesdeclast => Bin(crypto::dec_last),
        Aesimc | Vaesimc => Un(crypto::imc), Aeskeygenassist | Vaeskeygenassist => UnImm(crypto::keygen),
        Pclmulqdq | Vpclmulqdq => BinImm(crypto::clmul),
        Gf2p8mulb | Vgf2p8mulb => Bin(crypto::gf_mulb),
        Gf2p8affineqb | Vgf2p8affineqb => BinImm(crypto::gf_affine),
        Gf2p8affineinvqb | Vgf2p8affineinvqb => BinImm(crypto::gf_affine_inverse),
        Sha1rnds4 => BinImm(crypto::sha1_rounds), Sha1nexte => Bin(crypto::sha1_next),
        Sha1msg1 => Bin(crypto::sha1_msg1), Sha1msg2 => Bin(crypto::sha1_msg2),
        Sha256rnds2 => Special(crypto::sha256_rounds),
        Sha256msg1 => Bin(crypto::sha256_msg1), Sha256msg2 => Bin(crypto::sha256_msg2),
        _ => return x87::action(i),
    })
}

/// VEXTRACTF128 writes 16 bytes.
fn x128(i: &super::Insn, r: &mut super::Regs<'_>) -> Result<(), super::Stop> {
    let v = shuffle::extract128(&r.vector(i.op[1]), i.imm);
    i.put(r, &v);
    Ok(())
}

#[rustfmt::skip]
fn floating(i: &Instruction) -> Option<Action> {
    use Mnemonic::*;
    use fp::{ADD, ADDSUB, DIV, MAX, MIN, MUL, SQRT, SUB};
    Some(Special(match i.mnemonic() {
        Addps | Vaddps => fp::packed::<4, ADD>, Addpd | Vaddpd => fp::packed::<8, ADD>,
        Addss | Vaddss => fp::scalar::<4, ADD>, Addsd | Vaddsd => fp::scalar::<8, ADD>,
        Subps | Vsubps => fp::packed::<4, SUB>, Subpd | Vsubpd => fp::packed::<8, SUB>,
        Subss | Vsubss => fp::scalar::<4, SUB>, Subsd | Vsubsd => fp::scalar::<8, SUB>,
        Mulps | Vmulps => fp::packed::<4, MUL>, Mulpd | Vmulpd => fp::packed::<8, MUL>,
        Mulss | Vmulss => fp::scalar::<4, MUL>, Mulsd | Vmulsd => fp::scalar::<8, MUL>,
        Divps | Vdivps => fp::packed::<4, DIV>, Divpd | Vdivpd => fp::packed::<8, DIV>,
        Divss | Vdivss => fp::scalar::<4, DIV>, Divsd | Vdivsd => fp::scalar::<8, DIV>,
        Minps | Vminps => fp::packed::<4, MIN>, Minpd | Vminpd => fp::packed::<8, MIN>,
        Minss | Vminss => fp::scalar::<4, MIN>, Minsd | Vminsd => fp::scalar::<8, MIN>,
        Maxps | Vmaxps => fp::packed::<4, MAX>, Maxpd | Vmaxpd => fp::packed::<8, MAX>,
        Maxss | Vmaxss => fp::scalar::<4, MAX>, Maxsd | Vmaxsd => fp::scalar::<8, MAX>,
        Sqrtps | Vsqrtps => fp::packed::<4, SQRT>, Sqrtpd | Vsqrtpd => fp::packed::<8, SQRT>,
        Sqrtss | Vsqrtss => fp::scalar::<4, SQRT>, Sqrtsd | Vsqrtsd => fp::scalar::<8, SQRT>,
        Addsubps | Vaddsubps => fp::packed::<4, ADDSUB>, Addsubpd | Vaddsubpd => fp::packed::<8, ADDSUB>,
        Haddps | Vhaddps => fp::horizontal::<4, ADD>, Haddpd | Vhaddpd => fp::horizontal::<8, ADD>,
        Hsubps | Vhsubps => fp::horizontal::<4, SUB>, Hsubpd | Vhsubpd => fp::horizontal::<8, SUB>,
        Dpps | Vdpps => fp::dot::<4>, Dppd | Vdppd => fp::dot::<8>,
        Cmpps | Vcmpps => fp::compare::<4>, Cmppd | Vcmppd => fp::compare::<8>,
        Cmpss | Vcmpss => fp::compare_scalar::<4>,
        Cmpsd | Vcmpsd => fp::compare_scalar::<8>,
        Comiss | Vcomiss => fp::comi::<4, false>, Comisd | Vcomisd => fp::comi::<8, false>,
        Ucomiss | Vucomiss => fp::comi::<4, true>, Ucomisd | Vucomisd => fp::comi::<8, true>,
        Rcpps | Vrcpps => fp::approx::<false>, Rsqrtps | Vrsqrtps => fp::approx::<true>,
        Rcpss | Vrcpss => fp::approx_scalar::<false>, Rsqrtss | Vrsqrtss => fp::approx_scalar::<true>,
        Roundps | Vroundps => fp::round::<4>, Roundpd | Vroundpd => fp::round::<8>,
        Roundss | Vroundss => fp::round_scalar::<4>, Roundsd | Vroundsd => fp::round_scalar::<8>,
        Cvtps2pd | Vcvtps2pd => fp::convert::<4, 8>, Cvtpd2ps | Vcvtpd2ps => fp::convert::<8, 4>,
        Vcvtph2ps => fp::convert::<2, 4>, Vcvtps2ph => fp::to_half,
        Cvtss2sd | Vcvtss2sd => fp::convert_scalar::<4, 8>, Cvtsd2ss | Vcvtsd2ss => fp::convert_scalar::<8, 4>,
        Cvtdq2ps | Vcvtdq2ps => fp::from_dwords::<4>, Cvtdq2pd | Vcvtdq2pd | Cvtpi2pd => fp::from_dwords::<8>,
        Cvtpi2ps => fp::pi2ps,
        Cvtsi2ss | Vcvtsi2ss => fp::from_gpr::<4>, Cvtsi2sd | Vcvtsi2sd => fp::from_gpr::<8>,
        Cvtps2dq | Vcvtps2dq | Cvtps2pi => fp::to_dwords::<4, false>,
        Cvttps2dq | Vcvttps2dq | Cvttps2pi => fp::to_dwords::<4, true>,
        Cvtpd2dq | Vcvtpd2dq | Cvtpd2pi => fp::to_dwords::<8, false>,
        Cvttpd2dq | Vcvttpd2dq | Cvttpd2pi => fp::to_dwords::<8, true>,
        Cvtss2si | Vcvtss2si => fp::to_gpr::<4, false>, Cvttss2si | Vcvttss2si => fp::to_gpr::<4, true>,
        Cvtsd2si | Vcvtsd2si => fp::to_gpr::<8, false>, Cvttsd2si | Vcvttsd2si => fp::to_gpr::<8, true>,
        _ => return None,
    }))
}
