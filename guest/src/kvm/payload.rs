//! The program inside the machine: a few dozen instructions, assembled together with this crate.
//!
//! It is position-independent, uses no stack and takes no interrupts. All its state between two
//! instructions is in registers, so it moves with the vCPU's state; all its configuration is in the
//! parameters. It uses few instructions per page and string instructions for the bulk, because some
//! hosts emulate a guest's instructions one by one.

use crate::layout::{LINE_END, MAILBOX, MAILBOX_WORDS, PARAMETERS, POOL, WORKING_SET, WorkingSet};
use crate::pattern::{
    BODY_WORDS, FOLD_FACTOR, MAGIC, PAGE_FACTOR, POOL_START_WORDS, VERSION_FACTOR,
    incompressible_threshold,
};

/// Guest-physical address of the devices: in the hole below 4 GiB.
pub const DEVICES_PHYSICAL: u64 = 0xd000_0000;
/// Virtual address of the devices: beyond the largest possible memory.
pub const DEVICES_VIRTUAL: u64 = 256 << 30;
/// The serial console's first register.
pub const SERIAL: u64 = 0x000;
/// Reading waits for the next tick.
pub const TICK: u64 = 0x100;
/// Reading returns the epoch under which the guest runs.
pub const EPOCH: u64 = 0x108;
/// Writing reports the payload's end.
pub const REPORT: u64 = 0x110;
/// Answer of the tick register: nothing happened, ask again.
pub const TICK_AGAIN: u32 = u32::MAX;

/// The text for a code that the payload reports.
#[must_use]
pub const fn report_text(code: u32) -> &'static str {
    match code {
        1 => "the mailbox does not hold the last two ticks: a device's write was lost",
        2 => "a page's header is not what was written",
        3 => "a page's body is not what was written",
        _ => "an unknown report",
    }
}

/// The payload's parameters, in the order in which it reads them.
pub(super) fn parameters(set: &WorkingSet, key: u64, incompressible_percent: u8) -> [u64; 14] {
    [
        WORKING_SET,
        set.page_count,
        set.stride,
        key,
        incompressible_threshold(incompressible_percent),
        POOL,
        POOL_START_WORDS as u64 - 1,
        MAILBOX,
        LINE_END,
        PAGE_FACTOR,
        VERSION_FACTOR,
        FOLD_FACTOR,
        MAGIC,
        DEVICES_VIRTUAL,
    ]
}

std::arch::global_asm!(
    ".pushsection .rodata.towpath_payload, \"a\", @progbits",
    ".global towpath_payload_start",
    ".global towpath_payload_end",
    ".hidden towpath_payload_start",
    ".hidden towpath_payload_end",
    "towpath_payload_start:",
    "    mov ebp, {parameters}",
    // Wait for a tick. The machine answers -1 if it was stopped meanwhile: then nothing happened.
    ".Ltowpath_tick:",
    "    mov rdx, [rbp + 8 * 13]",
    "    mov eax, [rdx + {tick}]",
    "    cmp eax, -1",
    "    je .Ltowpath_tick",
    "    mov r11d, eax",
    "    inc r13",
    "    mov rdi, [rbp + 8 * 7]",
    // Check the device's words for this tick and the one before. After a move the former is new,
    // and the latter came with the memory.
    "    mov eax, r13d",
    "    and eax, {mailbox_words} - 1",
    "    cmp [rdi + rax * 8], r13",
    "    jne .Ltowpath_bad_mailbox",
    "    lea rcx, [r13 - 1]",
    "    mov eax, ecx",
    "    and eax, {mailbox_words} - 1",
    "    cmp [rdi + rax * 8], rcx",
    "    jne .Ltowpath_bad_mailbox",
    // Build "HB <sequence> <epoch>\n" backwards and print it eight bytes at a time, padded with
    // leading zeros.
    "    mov rax, [rdx + {epoch}]",
    "    mov rdi, [rbp + 8 * 8]",
    "    dec rdi",
    "    mov byte ptr [rdi], 10",
    "    mov r10d, 10",
    "    lea rsi, [rip + .Ltowpath_epoch_done]",
    "    jmp .Ltowpath_digits",
    ".Ltowpath_epoch_done:",
    "    dec rdi",
    "    mov byte ptr [rdi], 32",
    "    mov rax, r13",
    "    lea rsi, [rip + .Ltowpath_sequence_done]",
    "    jmp .Ltowpath_digits",
    ".Ltowpath_sequence_done:",
    "    sub rdi, 3",
    "    mov word ptr [rdi], 0x4248",
    "    mov byte ptr [rdi + 2], 32",
    ".Ltowpath_pad:",
    "    test dil, 7",
    "    jz .Ltowpath_print",
    "    dec rdi",
    "    mov byte ptr [rdi], 0",
    "    jmp .Ltowpath_pad",
    ".Ltowpath_print:",
    "    mov rdx, [rbp + 8 * 13]",
    "    mov rax, [rdi]",
    "    mov [rdx + {serial}], rax",
    "    add rdi, 8",
    "    cmp rdi, [rbp + 8 * 8]",
    "    jb .Ltowpath_print",
    // Rewrite the pages of this tick. r15 is the page's address, r9 its number, rbx its version.
    ".Ltowpath_next:",
    "    test r11d, r11d",
    "    jz .Ltowpath_tick",
    "    dec r11d",
    "    mov r15, r14",
    "    shl r15, 12",
    "    add r15, [rbp]",
    "    mov r9, r15",
    "    shr r9, 12",
    "    mov rax, [rbp + 8 * 12]",
    "    cmp [r15], rax",
    "    jne .Ltowpath_bad_header",
    "    cmp [r15 + 8], r9",
    "    jne .Ltowpath_bad_header",
    "    mov rbx, [r15 + 16]",
    "    lea rsi, [rip + .Ltowpath_old_mixed]",
    "    jmp .Ltowpath_mix",
    ".Ltowpath_old_mixed:",
    "    cmp [r15 + 24], rax",
    "    jne .Ltowpath_bad_header",
    // Only the last word of the body is checked here; the whole body is checked from outside.
    "    mov r8, r9",
    "    imul r8, [rbp + 8 * 9]",
    "    shr r8, 32",
    "    cmp r8, [rbp + 8 * 4]",
    "    jae .Ltowpath_check_last",
    "    and rax, [rbp + 8 * 6]",
    "    mov rsi, [rbp + 8 * 5]",
    "    mov rax, [rsi + rax * 8 + 8 * ({body_words} - 1)]",
    ".Ltowpath_check_last:",
    "    cmp [r15 + 4088], rax",
    "    jne .Ltowpath_bad_body",
    "    inc rbx",
    "    lea rsi, [rip + .Ltowpath_new_mixed]",
    "    jmp .Ltowpath_mix",
    ".Ltowpath_new_mixed:",
    // From here on r12 is odd until every byte is written. One register thus holds both the number
    // of writes done and whether one is in progress, so no stop can fall between the two.
    "    inc r12",
    "    mov rdx, [rbp + 8 * 12]",
    "    mov [r15], rdx",
    "    mov [r15 + 8], r9",
    "    mov [r15 + 16], rbx",
    "    mov [r15 + 24], rax",
    "    mov rdx, rbx",
    "    not rdx",
    "    mov [r15 + 32], rdx",
    "    mov [r15 + 40], rax",
    "    mov [r15 + 48], rax",
    "    mov rdx, rax",
    "    not rdx",
    "    mov [r15 + 56], rdx",
    "    lea rdi, [r15 + 64]",
    "    mov ecx, {body_words}",
    "    cmp r8, [rbp + 8 * 4]",
    "    jb .Ltowpath_noise",
    "    rep stosq",
    "    jmp .Ltowpath_written",
    ".Ltowpath_noise:",
    "    and rax, [rbp + 8 * 6]",
    "    mov rsi, [rbp + 8 * 5]",
    "    lea rsi, [rsi + rax * 8]",
    "    rep movsq",
    ".Ltowpath_written:",
    "    inc r12",
    "    add r14, [rbp + 8 * 2]",
    "    cmp r14, [rbp + 8]",
    "    jb .Ltowpath_next",
    "    sub r14, [rbp + 8]",
    "    jmp .Ltowpath_next",
    // rax = hash of page r9, version rbx and the key; continues at rsi, clobbers rdx.
    ".Ltowpath_mix:",
    "    mov rax, r9",
    "    imul rax, [rbp + 8 * 9]",
    "    mov rdx, rbx",
    "    imul rdx, [rbp + 8 * 10]",
    "    xor rax, rdx",
    "    xor rax, [rbp + 8 * 3]",
    "    mov rdx, rax",
    "    shr rdx, 32",
    "    xor rax, rdx",
    "    imul rax, [rbp + 8 * 11]",
    "    mov rdx, rax",
    "    shr rdx, 29",
    "    xor rax, rdx",
    "    jmp rsi",
    // Decimal digits of rax, downwards from rdi; continues at rsi, clobbers rdx.
    ".Ltowpath_digits:",
    "    xor edx, edx",
    "    div r10",
    "    add dl, 48",
    "    dec rdi",
    "    mov [rdi], dl",
    "    test rax, rax",
    "    jnz .Ltowpath_digits",
    "    jmp rsi",
    ".Ltowpath_bad_mailbox:",
    "    mov eax, 1",
    "    jmp .Ltowpath_report",
    ".Ltowpath_bad_header:",
    "    mov eax, 2",
    "    jmp .Ltowpath_report",
    ".Ltowpath_bad_body:",
    "    mov eax, 3",
    ".Ltowpath_report:",
    "    mov rdx, [rbp + 8 * 13]",
    "    mov [rdx + {report}], eax",
    "    jmp .Ltowpath_report",
    "towpath_payload_end:",
    ".popsection",
    parameters = const PARAMETERS,
    tick = const TICK,
    epoch = const EPOCH,
    report = const REPORT,
    serial = const SERIAL,
    mailbox_words = const MAILBOX_WORDS,
    body_words = const BODY_WORDS,
);

unsafe extern "C" {
    static towpath_payload_start: u8;
    static towpath_payload_end: u8;
}

/// The payload's bytes.
pub(super) fn code() -> &'static [u8] {
    let start = &raw const towpath_payload_start;
    let end = &raw const towpath_payload_end;
    let length = end as usize - start as usize;
    // SAFETY: the two symbols are the first byte of the section above and the byte behind its last,
    // which are constant and live as long as the program.
    unsafe { std::slice::from_raw_parts(start, length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_fits_its_place() {
        assert!(code().len() as u64 <= crate::layout::CODE_BYTES_MAX);
        assert!(code().len() > 200);
    }
}
