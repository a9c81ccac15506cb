# The first program of the kernels that the tests boot: answers lines typed at the console.
#   q  powers off;  l  reads the link and says what came;  m  says and changes what /dev/mmapper begins with;
#   anything else is said back.
.intel_syntax noprefix
.globl _start
.text
_start:
  lea rdi,[rip+devtmpfs]
  lea rsi,[rip+dev]
  mov rdx,rdi
  xor r10d,r10d
  xor r8d,r8d
  mov eax,165
  syscall               # mount("devtmpfs", "/dev", "devtmpfs", 0, 0)
  lea rdi,[rip+tty]
  mov esi,0x102
  mov eax,2
  syscall               # open("/dev/ttyS0", O_RDWR|O_NOCTTY)
  mov r12,rax
  mov edi,1
  lea rsi,[rip+up]
  mov edx,11
  mov eax,1
  syscall               # write(1, "init is up\n")
  mov rdi,r12
  lea rsi,[rip+link]
  mov edx,11
  mov eax,1
  syscall               # write(ttyS0, "link is up\n")
  sub rsp,256
next:
  xor edi,edi
  mov rsi,rsp
  mov edx,256
  xor eax,eax
  syscall               # read(0)
  test rax,rax
  jle off
  mov bl,[rsp]
  cmp bl,'q'
  je off
  cmp bl,'l'
  jne notlink
  mov rdi,r12
  mov rsi,rsp
  mov edx,256
  xor eax,eax
  syscall               # read(ttyS0)
  jmp say
notlink:
  cmp bl,'m'
  jne say
  lea rdi,[rip+mmapper]
  mov esi,2
  mov eax,2
  syscall               # open("/dev/mmapper", O_RDWR)
  mov r8,rax
  xor edi,edi
  mov esi,4096
  mov edx,3
  mov r10d,1
  xor r9d,r9d
  mov eax,9
  syscall               # mmap(0, 4096, RW, MAP_SHARED, fd, 0)
  mov rbp,[rax]
  mov [rsp],rbp
  mov rbp,[rax+8]
  mov [rsp+8],rbp
  mov qword ptr [rax],0x6e726b6c
  mov eax,16
say:
  mov edx,eax
  mov rsi,rsp
  mov edi,1
  mov eax,1
  syscall               # write(1)
  jmp next
off:
  mov edi,0xfee1dead
  mov esi,672274793
  mov edx,0x4321fedc
  xor r10d,r10d
  mov eax,169
  syscall               # reboot(POWER_OFF)
devtmpfs: .asciz "devtmpfs"
dev: .asciz "/dev"
tty: .asciz "/dev/ttyS0"
mmapper: .asciz "/dev/mmapper"
up: .ascii "init is up\n"
link: .ascii "link is up\n"
