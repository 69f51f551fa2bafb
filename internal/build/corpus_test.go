package build

import (
	"fmt"
	"strings"
)

// corpus is what TestDifferential builds. A stage "base" with busybox comes
// first in each.
var corpus = append([]corpusCase{
	// Files of the context.
	{name: "copy file", dockerfile: "FROM scratch\nCOPY a /x\n", files: "a=A b=B", matters: "a", unused: "b"},
	{name: "copy many", dockerfile: "FROM scratch\nCOPY a b /d/\n", files: "a=A b=B", matters: "b"},
	{name: "copy directory", dockerfile: "FROM scratch\nCOPY d /d\n", files: "d/a=A d/e/b=B:600 d/empty/:700 other=x", matters: "d/e/b", unused: "other"},
	{name: "copy directory to root", dockerfile: "FROM scratch\nCOPY d /\n", files: "d/a=A d/e/b=B"},
	{name: "copy all", dockerfile: "FROM scratch\nCOPY . .\n", files: "a=A d/b=B", matters: "a"},
	{name: "copy all into workdir", dockerfile: "FROM scratch\nWORKDIR /w/x\nCOPY . .\n", files: "a=A"},
	{name: "copy wildcard", dockerfile: "FROM scratch\nCOPY *.t ?.u [ab].v /d/\n", files: "a.t=1 b.t=2 c.u=3 cc.u=4 a.v=5 c.v=6", matters: "b.t", unused: "cc.u"},
	{name: "copy deep wildcard", dockerfile: "FROM scratch\nCOPY **/*.t /d/\n", files: "x/a.t=1 x/y/b.t=2 c.t=3", unused: "c.t", matters: "x/a.t"},
	{name: "copy wildcard of directories", dockerfile: "FROM scratch\nCOPY d* /o/\n", files: "d1/a=1 d2/b=2"},
	{name: "copy bracket names", dockerfile: "FROM scratch\nCOPY a[[]0].t /d/\n", files: "a[0].t=1 a0.t=2", matters: "a[0].t"},
	{name: "copy json form", dockerfile: "FROM scratch\nCOPY [\"a b\", \"/c d/\"]\n", files: "a_SP_b=1", matters: "a b"},
	{name: "copy chown numeric", dockerfile: "FROM scratch\nCOPY --chown=7:8 d /d\n", files: "d/a=A:640 d/e/f=F"},
	{name: "copy chown user only", dockerfile: "FROM scratch\nCOPY --chown=7 a /d/\n", files: "a=A"},
	{name: "copy chown names", dockerfile: "FROM base\nRUN echo u:x:5:6::/:/bin/sh >> /etc/passwd; echo g:x:9: > /etc/group\nCOPY --chown=u:g a /1\nCOPY --chown=u a /2\nCOPY --chown=:g a /3\n", files: "a=A"},
	{name: "copy chown user names", dockerfile: "FROM base\nRUN echo u:x:5:6::/:/bin/sh >> /etc/passwd; echo g:x:9: > /etc/group\nCOPY --chown=u:g a /1\nCOPY --chown=u a /2\nCOPY --chown=u:3 a /3\n", files: "a=A"},
	{name: "copy chown unknown", dockerfile: "FROM base\nCOPY --chown=ghost a /1\n", files: "a=A"},
	{name: "copy chmod octal", dockerfile: "FROM scratch\nCOPY --chmod=4751 d /d\n", files: "d/a=A d/e/f=F:600"},
	{name: "copy chmod symbolic", dockerfile: "FROM scratch\nCOPY --chmod=u=rwX,go=rX d /d\nCOPY --chmod=a+x,o-r d /e\n", files: "d/a=A:600 d/x=X:700 d/e/f=F"},
	{name: "copy chmod variable", dockerfile: "FROM scratch\nARG M=604\nARG O=3:4\nCOPY --chmod=$M --chown=${O} a /a\n", files: "a=A"},
	{name: "copy link", dockerfile: "FROM base\nCOPY --link a /l/a\nCOPY --link b /l/b\nRUN cat /l/a /l/b > /l/c\n", files: "a=A b=B", matters: "b"},
	{name: "copy link over link", dockerfile: "FROM base\nRUN mkdir /real && ln -s /real /to\nCOPY --link a /to/a\n", files: "a=A"},
	{name: "copy link chown chmod", dockerfile: "FROM base\nCOPY --link --chown=3:4 --chmod=600 d /d\n", files: "d/a=A d/e/b=B"},
	{name: "copy link from stage", dockerfile: "FROM base AS one\nRUN mkdir /o && echo 1 > /o/1\nFROM base\nCOPY --link --from=one /o /p/\nRUN cat /p/1 > /q\n"},
	{name: "copy parents", dockerfile: "FROM scratch\nCOPY --parents d/./e/f x/y/z /p/\n", files: "d/e/f=F x/y/z=Z:600 x/:711", matters: "d/e/f"},
	{name: "copy parents wildcard", dockerfile: "FROM scratch\nCOPY --parents **/*.t /p/\n", files: "d/e/f.t=F x/y.t=Z x/n=N", unused: "x/n"},
	{name: "copy exclude", dockerfile: "FROM scratch\nCOPY --exclude=**/*.x --exclude=no d /d\n", files: "d/a=1 d/b.x=2 d/e/c.x=3 d/no/f=4", matters: "d/a", unused: "d/e/c.x"},
	{name: "copy exclude and parents", dockerfile: "FROM scratch\nCOPY --parents --exclude=*.x d /p/\n", files: "d/a=1 d/b.x=2"},
	{name: "copy over file", dockerfile: "FROM scratch\nCOPY a /x\nCOPY b /x\n", files: "a=A b=BB", matters: "b"},
	{name: "copy directory over directory", dockerfile: "FROM scratch\nCOPY d1 /d\nCOPY d2 /d\n", files: "d1/a=1 d1/b=2 d2/b=3 d2/c=4"},
	{name: "copy directory over file", dockerfile: "FROM scratch\nCOPY a /d\nCOPY d /d\n", files: "a=1 d/b=2", fails: "cannot copy to non-directory"},
	{name: "copy file over directory", dockerfile: "FROM scratch\nCOPY d /d\nCOPY a /d\n", files: "a=1 d/b=2"},
	{name: "copy many to a file", dockerfile: "FROM scratch\nCOPY a b /d\n", files: "a=1 b=2"},
	{name: "copy missing", dockerfile: "FROM scratch\nCOPY nothing /d\n", fails: "not found"},
	{name: "copy no match", dockerfile: "FROM scratch\nCOPY *.none a /d/\n", files: "a=1"},
	{name: "copy outside", dockerfile: "FROM scratch\nCOPY ../../a /x\n", files: "a=A"},
	{name: "copy empty file", dockerfile: "FROM scratch\nCOPY a /a\n", files: "a="},
	{name: "copy same twice", dockerfile: "FROM scratch\nCOPY a /a\nCOPY a /a\n", files: "a=A"},
	{name: "copy trailing slashes", dockerfile: "FROM scratch\nCOPY a d/ /x/y/\nCOPY d /z/\nCOPY a z/\n", files: "a=A d/e=E"},
	{name: "copy relative", dockerfile: "FROM scratch\nWORKDIR /w\nCOPY a x\nCOPY a ./y/\nCOPY a ../z\n", files: "a=A"},
	{name: "copy setuid", dockerfile: "FROM scratch\nCOPY d /d\n", files: "d/a=A:4755 d/b=B:2755 d/s/:1777"},
	{name: "copy read only", dockerfile: "FROM scratch\nCOPY d /d\n", files: "d/a=A:000 d/e/b=B:400"},
	{name: "copy symlinks", dockerfile: "FROM scratch\nCOPY d /d\nCOPY d/l /l\nCOPY d/dir /dir\n", files: "d/a=A d/l->a d/dir->e d/e/f=F d/dangling->none d/abs->/etc/none", matters: "d/a"},
	{name: "copy symlink to outside", dockerfile: "FROM scratch\nCOPY l /l\n", files: "l->../../../../etc/hostname", fails: "not found"},
	{name: "copy through symlinked directory", dockerfile: "FROM scratch\nCOPY l/f /f\n", files: "d/f=F l->d", matters: "d/f"},
	{name: "copy onto symlink", dockerfile: "FROM base\nRUN mkdir /r && ln -s /r/f /l && ln -s r /dl\nCOPY a /l\nCOPY a /dl/x\nCOPY d /dl\n", files: "a=A d/b=B"},
	{name: "copy onto dangling symlink", dockerfile: "FROM base\nRUN ln -s /no/where /l\nCOPY a /l\n", files: "a=A"},
	{name: "copy onto looping symlink", dockerfile: "FROM base\nRUN ln -s /l2 /l1 && ln -s /l1 /l2\nCOPY a /l1/x\n", files: "a=A", fails: "too many links"},
	{name: "copy climbing symlink", dockerfile: "FROM base\nRUN mkdir /r && ln -s ../../../../../r /l\nCOPY a /l/a\n", files: "a=A"},
	{name: "copy hard links", dockerfile: "FROM scratch\nCOPY d /d\n", files: "d/a=A d/b=>d/a d/e/c=>d/a"},
	{name: "copy hard links apart", dockerfile: "FROM scratch\nCOPY a b /d/\n", files: "a=A b=>a"},
	{name: "copy sparse", dockerfile: "FROM scratch\nCOPY s /s\n", files: "s~3000000", matters: "s"},
	{name: "copy xattrs", dockerfile: "FROM scratch\nCOPY d /d\n", files: "d/a=A @user.colour=red d/e/f=F @user.empty=", differs: noXattrs},
	{name: "copy capabilities", dockerfile: "FROM scratch\nCOPY d /d\n", files: "d/a=A @security.capability=\x01\x00\x00\x02\x00\x04\x00\x00" + strings.Repeat("\x00", 12)},
	{name: "copy fifo", dockerfile: "FROM scratch\nCOPY d /d\n", files: "d/p|fifo d/a=A"},
	{name: "copy odd names", dockerfile: "FROM scratch\nCOPY d /d\n", files: "d/-rf=1 d/a\\b=2 d/\u00e9\u4e2d=3 d/*=4 d/a'b\"c=5 d/.hidden=6 d/..x=7 d/#=8 d/$HOME=9 d/_SP_=10"},
	{name: "copy control characters", dockerfile: "FROM scratch\nCOPY d /d\n", files: "d/a\x01b=1 d/\x7f=2"},
	{name: "copy invalid utf8", dockerfile: "FROM base\nRUN mkdir /d && echo 1 > /d/$(printf 'a\\377b')\nRUN ls /d > /e\n"},
	{name: "copy long names", dockerfile: "FROM scratch\nCOPY d /d\n", files: "d/" + strings.Repeat("n", 250) + "=1 d/" + strings.Repeat("long/", 40) + "f=2"},
	{name: "copy deep tree", dockerfile: "FROM scratch\nCOPY d /d\n", files: "d/" + strings.Repeat("x/", 60) + "f=1", matters: "d/" + strings.Repeat("x/", 60) + "f"},
	{name: "copy wide tree", dockerfile: "FROM scratch\nCOPY d /d\nRUN [\"no\"]\n", files: many(300), fails: "no"},
	{name: "copy 300 files", dockerfile: "FROM scratch\nCOPY d /d\n", files: many(300), matters: "d/f123"},
	{name: "copy whiteout names", dockerfile: "FROM scratch\nCOPY d /d\n", files: "d/wh.a=1 d/.w=2"},
	{name: "copy dockerfile itself", dockerfile: "FROM scratch\nCOPY Dockerfile /\n"},

	// Ignore files.
	{name: "ignore", dockerfile: "FROM scratch\nCOPY . /c\n", files: ".dockerignore=*.log\\n!keep.log\\nsub\\n#c\\n**/tmp\\nbusybox a.log=1 keep.log=2 sub/x=3 d/tmp/y=4 d/z=5", matters: "d/z", unused: "sub/x"},
	{name: "ignore exceptions below", dockerfile: "FROM scratch\nCOPY . /c\n", files: ".dockerignore=*\\n!d/keep\\n!Dockerfile d/keep/a=1 d/no=2 x=3", matters: "d/keep/a", unused: "d/no"},
	{name: "ignore all but one", dockerfile: "FROM scratch\nCOPY . /c\n", files: ".dockerignore=**\\n!**/*.go\\n!busybox d/a.go=1 d/b.c=2", unused: "d/b.c"},
	{name: "ignore dockerfile", dockerfile: "FROM scratch\nCOPY . /c\n", files: ".dockerignore=Dockerfile\\n.dockerignore\\nbusybox a=1"},
	{name: "ignore own file", dockerfile: "FROM scratch\nCOPY . /c\n", files: ".dockerignore=a Dockerfile.dockerignore=b\\nbusybox a=1 b=2", unused: "b"},
	{name: "ignore copied", dockerfile: "FROM scratch\nCOPY a /a\n", files: ".dockerignore=a a=1", fails: "not found"},
	{name: "ignore blank and slashes", dockerfile: "FROM scratch\nCOPY d e /c/\n", files: ".dockerignore=\\n\\n/d/x\\ne/\\n d/x=1 d/y=2 e/z=3", fails: "not found"},
	{name: "ignore invalid", dockerfile: "FROM scratch\nCOPY a /c/\n", files: ".dockerignore=[\\n a=1", fails: "syntax error in pattern"},

	// ADD.
	{name: "add file", dockerfile: "FROM scratch\nADD a /x/\n", files: "a=A", matters: "a"},
	{name: "add chown chmod", dockerfile: "FROM scratch\nADD --chown=3:4 --chmod=640 d /d\n", files: "d/a=A"},
	{name: "add archive unpacked", dockerfile: "FROM scratch\nADD t.tar /u/\nADD t.tar /r\n", files: "t.tar=" + tinyTar, differs: noXattrs},
	{name: "add archive packed", dockerfile: "FROM scratch\nADD --unpack=false t.tar /u/\n", files: "t.tar=" + tinyTar},
	{name: "add archive chown", dockerfile: "FROM scratch\nADD --chown=5:6 t.tar /u/\n", files: "t.tar=" + tinyTar, differs: noXattrs},
	{name: "add not an archive", dockerfile: "FROM scratch\nADD t.tar /u/\n", files: "t.tar=hello"},
	{name: "add link", dockerfile: "FROM base\nADD --link a /x/\nRUN cat /x/a > /y\n", files: "a=A"},
	{name: "add exclude", dockerfile: "FROM scratch\nADD --exclude=*.x d /d\n", files: "d/a=1 d/b.x=2"},
	{name: "add checksum of a file", dockerfile: "FROM scratch\nADD --checksum=sha256:00 a /d\n", files: "a=1", fails: "checksum"},

	// Heredocs.
	{name: "heredoc run", dockerfile: "FROM base\nRUN <<EOF\nset -e\necho 1 > /1\necho $HOME > /2\nEOF\n"},
	{name: "heredoc run shebang", dockerfile: "FROM base\nRUN <<EOF\n#!/bin/busybox sh\necho $0 | wc -c > /1\nEOF\n"},
	{name: "heredoc run program", dockerfile: "FROM base\nRUN sh -s <<EOF\necho 1 > /1\nEOF\n"},
	{name: "heredoc run two", dockerfile: "FROM base\nRUN <<A cat > /1 && <<B cat > /2\none\nA\ntwo\nB\n"},
	{name: "heredoc quoted", dockerfile: "FROM scratch\nARG V=v\nCOPY <<\"EOF\" /q\n$V\nEOF\nCOPY <<EOF /u\n$V ${V:-x} \\$V\nEOF\n"},
	{name: "heredoc tabs", dockerfile: "FROM scratch\nCOPY <<-EOF /t\n\tone\n\t\ttwo\n\tEOF\n"},
	{name: "heredoc many files", dockerfile: "FROM scratch\nCOPY <<a.txt <<b.txt /d/\nA\na.txt\nB\nb.txt\n"},
	{name: "heredoc with files", dockerfile: "FROM scratch\nCOPY a <<b /d/\nB\nb\n", files: "a=A", matters: "a"},
	{name: "heredoc chmod", dockerfile: "FROM scratch\nCOPY --chmod=755 --chown=1:2 <<x /d/\n#!/bin/sh\nx\n"},
	{name: "heredoc add", dockerfile: "FROM scratch\nADD <<x /d/\nhi\nx\n"},
	{name: "heredoc empty", dockerfile: "FROM scratch\nCOPY <<x /d/\nx\n"},
	{name: "heredoc unfinished", dockerfile: "FROM scratch\nCOPY <<x /d/\nhi\n", fails: "unterminated heredoc"},

	// Stages and sources.
	{name: "stages", dockerfile: "FROM base AS a\nRUN echo a > /a\nFROM base AS unused\nRUN exit 1\nFROM base AS b\nRUN --mount=from=a,target=/m cat /m/a > /b\nFROM scratch\nCOPY --from=a /a /x/a\nCOPY --from=b /b /x/\n"},
	{name: "stage by number", dockerfile: "FROM scratch\nCOPY a /a\nFROM scratch\nCOPY --from=1 /a /b\n", files: "a=A"},
	{name: "stage from stage", dockerfile: "FROM base AS one\nENV A=1\nRUN echo 1 > /1\nFROM one AS two\nRUN echo $A > /2\nFROM two\nLABEL x=y\n"},
	{name: "stage case", dockerfile: "FROM scratch AS One\nCOPY a /a\nFROM scratch\nCOPY --from=oNE /a /b\n", files: "a=A"},
	{name: "stage forward", dockerfile: "FROM scratch AS one\nCOPY --from=later /a /b\nFROM scratch AS later\nFROM one\n", fails: "later"},
	{name: "stage of itself", dockerfile: "FROM scratch AS me\nCOPY --from=me /a /b\n", fails: "circular"},
	{name: "stage invalid name", dockerfile: "FROM scratch AS 1x\n", fails: "invalid name for build stage"},
	{name: "copy tree between stages", dockerfile: "FROM base AS a\nRUN mkdir -p /d/e && echo 1 > /d/e/1 && ln /d/e/1 /d/h && ln -s e/1 /d/l && chmod 2755 /d/e && chown 5:6 /d/e/1 && mkfifo /d/p\nFROM scratch\nCOPY --from=a /d /d\nCOPY --from=a /d/l /l\nCOPY --from=a /d/e/ /x/\n"},
	{name: "copy devices between stages", dockerfile: "FROM base AS a\nRUN mkdir /d && mknod /d/null c 1 3 && mknod /d/loop b 7 0 && mkfifo /d/f\nFROM scratch\nCOPY --from=a /d /d\n"},
	{name: "devices", dockerfile: "FROM base\nRUN mknod -m 600 /n c 1 3 && mknod /b b 8 1 && mkfifo -m 644 /f\n"},
	{name: "whole root between stages", dockerfile: "FROM base AS a\nRUN rm -r /bin/cat && echo x > /etc/x\nFROM scratch\nCOPY --from=a / /\n"},
	{name: "diamond", dockerfile: "FROM base AS a\nRUN echo 1 > /1\nFROM a AS b\nRUN echo 2 > /2\nFROM a AS c\nRUN echo 3 > /3\nFROM scratch\nCOPY --from=b /1 /2 /\nCOPY --from=c /1 /3 /d/\n"},

	// RUN.
	{name: "run shell", dockerfile: "FROM base\nRUN echo $0 $# > /a; pwd > /b; id > /c; env | sort > /d\n"},
	{name: "run exec form", dockerfile: "FROM base\nRUN [\"sh\", \"-c\", \"echo $0 $1 > /a\", \"zero\", \"one $HOME\"]\n"},
	{name: "run exec form quoting", dockerfile: "FROM base\nRUN [ \"sh\" , \"-c\" , \"printf '%s' \\\"a\\\\tb\\\" > /a\" ]\n"},
	{name: "run not json", dockerfile: "FROM base\nRUN ['sh', '-c', 'x'] || echo shell > /a\n"},
	{name: "run continued", dockerfile: "FROM base\nRUN echo a && \\\n    # a comment\n    echo b > /b && \\\n\n    echo c > /c\n"},
	{name: "run escape directive", dockerfile: "# escape=`\nFROM base\nRUN echo a\\b > /a && `\n  echo c > /c\n"},
	{name: "run quoting", dockerfile: "FROM base\nRUN printf '%s|' \"a  b\" 'c\"d' e\\ f \"$(echo '`x`')\" \\$X > /a\n"},
	{name: "run bind mount", dockerfile: "FROM base\nRUN --mount=target=/c cp /c/a /a && ls /c > /l\n", files: "a=A", matters: "a"},
	{name: "run bind source", dockerfile: "FROM base\nRUN --mount=target=/c,source=d cp /c/a /a\n", files: "d/a=A other=1", matters: "d/a", unused: "other"},
	{name: "run bind file", dockerfile: "FROM base\nRUN --mount=target=/c,source=d/a cp /c /a\n", files: "d/a=A"},
	{name: "run bind writable", dockerfile: "FROM base\nRUN --mount=target=/c,rw touch /c/n && ls /c > /l\nRUN --mount=target=/c ls /c > /m\n", files: "a=A"},
	{name: "run bind over files", dockerfile: "FROM base\nRUN mkdir /c && echo hidden > /c/h\nRUN --mount=target=/c ls /c > /l\nRUN ls /c > /m\n", files: "a=A"},
	{name: "run bind from stage", dockerfile: "FROM base AS a\nRUN mkdir /d && echo 1 > /d/1\nFROM base\nRUN --mount=from=a,source=/d,target=/x/y cp /x/y/1 /2\n"},
	{name: "run bind missing source", dockerfile: "FROM base\nRUN --mount=target=/c,source=none true\n", fails: "not found"},
	{name: "run bind relative target", dockerfile: "FROM base\nWORKDIR /w\nRUN --mount=target=c ls c > l\n", files: "a=A"},
	{name: "run bind variable", dockerfile: "FROM base\nARG D=d\nRUN --mount=target=/$D,source=$D ls /$D > /l\n", files: "d/a=A"},
	{name: "run cache mount", dockerfile: "FROM base\nRUN --mount=type=cache,target=/c,id=d1 ls -A /c > /l && touch /c/x\nRUN --mount=type=cache,target=/c,id=d1 ls -A /c > /m\n"},
	{name: "run cache mount seeded", dockerfile: "FROM base\nRUN --mount=type=cache,target=/c,id=d2,from=base,source=/etc,uid=5,gid=6,mode=0700 ls /c > /l\n"},
	{name: "run cache mount modes", dockerfile: "FROM base\nRUN --mount=type=cache,target=/c,id=d3,uid=5,gid=6,mode=0711,sharing=private stat -c %u:%g:%a /c > /l\nRUN --mount=type=cache,target=/c,id=d3,ro,sharing=locked ! touch /c/x 2>/dev/null\n"},
	{name: "run cache mount in home", dockerfile: "FROM base\nUSER 5\nENV HOME=/tmp/h\nRUN --mount=type=cache,target=$HOME/c,id=d4,uid=5 touch /tmp/h/c/x; ls -ld /tmp/h | cut -c1-10 > /tmp/l 2>/dev/null || true\n"},
	{name: "run tmpfs", dockerfile: "FROM base\nRUN --mount=type=tmpfs,target=/t touch /t/x && ls /t > /l\nRUN --mount=type=tmpfs,target=/tmp/deep/er,size=1m ! test -e /t/x\n"},
	{name: "run secret absent", dockerfile: "FROM base\nRUN --mount=type=secret,id=none test ! -e /run/secrets/none; ls / > /l\n"},
	{name: "run secret required", dockerfile: "FROM base\nRUN --mount=type=secret,id=none,required true\n", fails: "none: not found"},
	{name: "run mounts nested", dockerfile: "FROM base\nRUN --mount=type=tmpfs,target=/a --mount=target=/a/b ls /a/b > /l\n", files: "x=1 y=2"},
	{name: "run mount on link", dockerfile: "FROM base\nRUN mkdir /r && ln -s /r /l\nRUN --mount=type=tmpfs,target=/l/x touch /r/x/f && ls /r/x > /o\n"},
	{name: "run mount on file", dockerfile: "FROM base\nRUN echo old > /f\nRUN --mount=target=/f,source=a cat /f > /o\nRUN cat /f > /p\n", files: "a=A"},
	{name: "run mount unknown type", dockerfile: "FROM base\nRUN --mount=type=zfs,target=/x true\n", fails: "unsupported mount type"},
	{name: "run mount unknown option", dockerfile: "FROM base\nRUN --mount=type=bind,colour=red,target=/x true\n", fails: "unexpected key"},
	{name: "run network none", dockerfile: "FROM base\nRUN --network=none ls /sys/class/net > /n\n"},
	{name: "run unknown flag", dockerfile: "FROM base\nRUN --colour=red true\n", fails: "unknown flag"},
	{name: "run fails", dockerfile: "FROM base\nRUN exit 7\n", fails: "exit code: 7"},
	{name: "run nothing changed", dockerfile: "FROM base\nRUN true\nRUN ls > /dev/null\nRUN echo x > /dev/shm/x\n"},
	{name: "run reads proc", dockerfile: "FROM base\nRUN cat /proc/self/status | grep -e Cap -e Sec -e NoNew > /s; cat /etc/hosts > /h; ls /dev | sort > /d; ls -ld /dev/shm /proc/sys | cut -c1-10 > /m\n"},
	{name: "run leaves resolv.conf", dockerfile: "FROM base\nRUN echo mine > /etc/resolv.conf || true\nRUN ls /etc > /l\n"},
	{name: "run own resolv.conf", dockerfile: "FROM base\nCOPY a /etc/resolv.conf\nRUN cp /etc/resolv.conf /x; true\n", files: "a=mine"},
	{name: "run umask and times", dockerfile: "FROM base\nRUN umask 077; mkdir /d; echo x > /d/f; touch -d '2001-02-03 04:05:06' /d/f /d; umask > /u\n"},

	// Whiteouts.
	{name: "whiteout file", dockerfile: "FROM base\nRUN mkdir /d && touch /d/a /d/b\nRUN rm /d/a\n"},
	{name: "whiteout directory", dockerfile: "FROM base\nRUN mkdir -p /d/e && touch /d/e/f\nRUN rm -r /d\n"},
	{name: "whiteout and again", dockerfile: "FROM base\nRUN mkdir -p /d/e && touch /d/e/f\nRUN rm -r /d && mkdir /d && touch /d/g\nRUN touch /d/h\n"},
	{name: "whiteout by file", dockerfile: "FROM base\nRUN mkdir -p /d/e && touch /d/e/f\nRUN rm -r /d && echo file > /d\nRUN rm /d && mkdir /d\n"},
	{name: "whiteout link", dockerfile: "FROM base\nRUN mkdir /r && ln -s r /l\nRUN rm /l && mkdir /l && touch /l/x\n"},
	{name: "whiteout in the same step", dockerfile: "FROM base\nRUN touch /a && rm /a\nRUN mkdir /d && rmdir /d\n"},
	{name: "whiteout unknown below", dockerfile: "FROM base\nRUN mkdir -p /d/1/2 /d/3\nRUN rm -r /d/1 && mkdir -p /d/1/2/3\nCOPY a /d/1/a\n", files: "a=A"},
	{name: "whiteout of a copy", dockerfile: "FROM base\nCOPY d /d\nRUN rm -r /d/e /d/a\nCOPY d /d\n", files: "d/a=1 d/e/b=2"},
	{name: "whiteout hard link", dockerfile: "FROM base\nRUN echo x > /a && ln /a /b\nRUN rm /a\nRUN echo y >> /b\n"},
	{name: "rename directory", dockerfile: "FROM base\nRUN mkdir -p /d/e && echo 1 > /d/e/f\nRUN mv /d /g\n"},
	{name: "rename file", dockerfile: "FROM base\nRUN echo 1 > /f\nRUN mv /f /g\n"},
	{name: "chmod only", dockerfile: "FROM base\nRUN mkdir /d && echo 1 > /d/f\nRUN chmod 700 /d && chmod 600 /d/f\nRUN chown 3:4 /d\n"},
	{name: "touch only", dockerfile: "FROM base\nRUN mkdir /d && echo 1 > /d/f\nRUN touch -d '2002-02-02 02:02:02' /d/f\n"},
	{name: "append", dockerfile: "FROM base\nRUN echo 1 > /f\nRUN echo 2 >> /f\nRUN echo 3 >> /f\n"},
	{name: "replace by link", dockerfile: "FROM base\nRUN echo 1 > /f && mkdir /d && touch /d/x\nRUN rm /f && ln -s d /f\n"},
	{name: "hard link across steps", dockerfile: "FROM base\nRUN echo 1 > /f\nRUN ln /f /g\nRUN ln /g /h && chmod 700 /h\n", differs: "BuildKit's layer has the first name not, so that the second becomes a file of its own"},
	{name: "sparse", dockerfile: "FROM base\nRUN truncate -s 5M /s && printf x | dd of=/s bs=1 seek=1000000 conv=notrunc 2>/dev/null\nRUN printf y >> /s\n"},
	{name: "root directory", dockerfile: "FROM base\nRUN chmod 711 / && chown 5:6 /\n"},
	{name: "special modes", dockerfile: "FROM base\nRUN mkdir /s /g && chmod 1777 /s && chmod 2775 /g && touch /g/x && cp /bin/busybox /su && chmod 6755 /su\n"},

	// Variables.
	{name: "arg", dockerfile: "FROM base\nARG GREETING=bye\nARG B\nARG C=c D=${C}d\nRUN echo $GREETING $B $C $D > /a\n"},
	{name: "arg global", dockerfile: "ARG B=base\nARG N=n\nFROM $B\nARG N\nRUN echo $B $N > /a\n"},
	{name: "arg scope", dockerfile: "FROM base AS a\nARG X=1\nRUN echo $X > /a\nFROM base\nRUN echo [$X] > /b\n"},
	{name: "arg inherited", dockerfile: "FROM base AS a\nARG X=1\nENV Y=2\nFROM a\nRUN echo [$X] [$Y] > /b\n"},
	{name: "arg overridden by env", dockerfile: "FROM base\nARG GREETING\nENV GREETING=env\nRUN echo $GREETING > /a\n"},
	{name: "arg platform", dockerfile: "FROM base\nARG TARGETPLATFORM TARGETOS TARGETARCH BUILDPLATFORM BUILDARCH TARGETVARIANT\nARG TARGETSTAGE\nRUN echo $TARGETPLATFORM $TARGETOS $TARGETARCH $BUILDPLATFORM $BUILDARCH [$TARGETVARIANT] > /a\n"},
	{name: "arg date", dockerfile: "FROM base\nARG SOURCE_DATE_EPOCH\nRUN echo $SOURCE_DATE_EPOCH > /a\n"},
	{name: "arg undefined base", dockerfile: "FROM $NOTHING\n", fails: "base name ($NOTHING) should not be blank"},
	{name: "arg unused", dockerfile: "FROM base\nARG X=1\nRUN true\nARG Y\n"},
	{name: "env", dockerfile: "FROM base\nENV A=1 B=\"two words\" C=a\\ b D=$A E=${A}x F='$A' G=\nENV OLD form of it\nRUN env | grep -e ^[A-G]= -e OLD | sort > /e\n"},
	{name: "env same line", dockerfile: "FROM base\nENV A=1\nENV A=2 B=$A\nRUN echo $A $B > /e\n"},
	{name: "env path", dockerfile: "FROM base\nENV PATH=/x:$PATH\nRUN echo $PATH > /p\n"},
	{name: "expansion", dockerfile: "FROM base\nENV v=file.tar.gz e=\nENV a=${v%.gz} b=${v%%.*} c=${v#*.} d=${v##*.} f=${v/tar/zip} g=${v//a/b} h=${e:-def} i=${e:+set} j=${none-x} k=${v:+set} l=${v+y}\nRUN env | grep ^[a-l]= | sort > /e\n"},
	{name: "expansion required", dockerfile: "FROM base\nENV a=\"${none:?it is missing}\"\n", fails: "it is missing"},
	{name: "expansion in places", dockerfile: "FROM base\nARG d=dir\nENV f=a\nWORKDIR /$d\nCOPY ${f} ./$f-x\nUSER ${d:+5}\nLABEL l=$d\nEXPOSE ${p:-80}\nVOLUME /$d/v\nSTOPSIGNAL ${s:-TERM}\n", files: "a=A"},
	{name: "expansion escaped", dockerfile: "FROM base\nENV A=1\nENV B=\\$A C='\\$A' D=\"\\$A\"\nLABEL x=\"$A\\\"q\\\"\"\n"},

	// Everything that ends in the config.
	{name: "cmd", dockerfile: "FROM scratch\nCOPY a /\nCMD [\"a\", \"b c\"]\n", files: "a=1"},
	{name: "cmd shell", dockerfile: "FROM scratch\nCOPY a /\nCMD a 'b  c' $X\n", files: "a=1"},
	{name: "cmd reset by entrypoint", dockerfile: "FROM scratch AS x\nCOPY a /\nCMD x\nFROM x\nENTRYPOINT [\"e\"]\n", files: "a=1"},
	{name: "entrypoint shell", dockerfile: "FROM scratch\nCOPY a /\nSHELL [\"/sh\", \"-x\"]\nENTRYPOINT e $X\nCMD [\"c\"]\n", files: "a=1"},
	{name: "entrypoint emptied", dockerfile: "FROM scratch AS x\nCOPY a /\nENTRYPOINT [\"e\"]\nCMD [\"c\"]\nFROM x\nENTRYPOINT []\nCMD []\n", files: "a=1"},
	{name: "labels", dockerfile: "FROM scratch\nCOPY a /\nLABEL a=b \"c d\"=\"e f\" g=\"h\\\ni\"\nLABEL a=again\nLABEL old form\n", files: "a=1"},
	{name: "expose", dockerfile: "FROM scratch\nCOPY a /\nEXPOSE 80 53/udp 8000-8002 90/tcp\n", files: "a=1"},
	{name: "expose invalid", dockerfile: "FROM scratch\nEXPOSE http\n", fails: "http"},
	{name: "volume", dockerfile: "FROM base\nVOLUME /v /w\nVOLUME [\"/x y\"]\nRUN mkdir /v && touch /v/f\n"},
	{name: "volume empty", dockerfile: "FROM scratch\nVOLUME [\"\"]\n", fails: "VOLUME"},
	{name: "user", dockerfile: "FROM base\nRUN echo u:x:5:6::/h:/bin/sh >> /etc/passwd; printf 'g:x:9:u\\nh:x:10:u\\n' > /etc/group; chmod 777 /tmp\nUSER u\nRUN id > /tmp/1; echo $HOME > /tmp/h\nUSER u:g\nRUN id > /tmp/2\nUSER 77:88\nRUN id > /tmp/3\nUSER 5\nRUN id > /tmp/4\nCOPY a /tmp/5\nWORKDIR /tmp/w\nADD a /tmp/6\n", files: "a=A"},
	{name: "user unknown", dockerfile: "FROM base\nUSER ghost\nRUN true\n", fails: "ghost"},
	{name: "workdir", dockerfile: "FROM base\nWORKDIR /a\nWORKDIR b\nWORKDIR ../c/./d\nWORKDIR \"e f\"\nRUN pwd > p\nWORKDIR /\n"},
	{name: "workdir exists", dockerfile: "FROM base\nRUN mkdir -m 700 /w && chown 3:4 /w\nWORKDIR /w\nUSER 5\nWORKDIR /x/y\n"},
	{name: "workdir link", dockerfile: "FROM base\nRUN mkdir /r && ln -s r /l\nWORKDIR /l/x\nRUN pwd > p\n"},
	{name: "workdir file", dockerfile: "FROM base\nWORKDIR /etc/passwd\n", fails: "not a directory"},
	{name: "workdir unset", dockerfile: "FROM base\nWORKDIR rel\nRUN pwd > /p\n"},
	{name: "healthcheck", dockerfile: "FROM scratch\nCOPY a /\nHEALTHCHECK --interval=5s --timeout=3s --start-period=1m --start-interval=2s --retries=4 CMD x y\n", files: "a=1"},
	{name: "healthcheck none", dockerfile: "FROM scratch AS x\nCOPY a /\nHEALTHCHECK CMD [\"x\"]\nFROM x\nHEALTHCHECK NONE\n", files: "a=1"},
	{name: "healthcheck invalid", dockerfile: "FROM scratch\nHEALTHCHECK --interval=x CMD y\n", fails: "invalid duration"},
	{name: "stopsignal shell maintainer", dockerfile: "FROM scratch\nCOPY a /\nSTOPSIGNAL SIGUSR1\nSHELL [\"a\"]\nMAINTAINER me <me@x>\n", files: "a=1"},
	{name: "stopsignal invalid", dockerfile: "FROM scratch\nSTOPSIGNAL SIGNOTHING\n", fails: "SIGNOTHING"},
	{name: "onbuild", dockerfile: "FROM base AS on\nONBUILD RUN echo on > /on\nONBUILD COPY a /a\nONBUILD ENV E=1\nFROM on\nRUN echo $E > /e\n", files: "a=A", matters: "a"},
	{name: "onbuild kept", dockerfile: "FROM scratch\nCOPY a /\nONBUILD RUN x\nONBUILD COPY --from=y z /\n", files: "a=1"},
	{name: "onbuild forbidden", dockerfile: "FROM scratch\nONBUILD FROM x\n", fails: "FROM isn't allowed as an ONBUILD trigger"},
	{name: "empty image", dockerfile: "FROM scratch\nLABEL a=b\n"},
	{name: "config only over base", dockerfile: "FROM base\nENV A=1\nCMD x\n"},
	{name: "lower case", dockerfile: "from base as x\nrun echo 1 > /1\ncopy a /\n", files: "a=A"},
	{name: "crlf", dockerfile: "FROM base\r\nRUN echo 1 > /1\r\nCOPY a /x\r\n", files: "a=A"},
	{name: "byte order mark", dockerfile: "\xef\xbb\xbfFROM base\nRUN echo 1 > /1\n", fails: "unknown instruction"},
	{name: "no newline at the end", dockerfile: "FROM base\nRUN echo 1 > /1"},
	{name: "comments", dockerfile: "# one\nFROM base\n  # two\nRUN echo 1 > /1 # no comment\n#RUN exit 1\n"},
	{name: "directives", dockerfile: "# syntax=docker/dockerfile:1\n# check=skip=all\nFROM base\nRUN echo 1 > /1\n"},
	{name: "unknown instruction", dockerfile: "FROM base\nRUM x\n", fails: "unknown instruction: RUM"},
	{name: "no from", dockerfile: "RUN x\n", files: "Dockerfile=RUN_SP_x\\n", fails: "no build stage"},
	{name: "130 layers", dockerfile: "FROM base\n" + lines(128, "COPY a /d%d/\n"), files: "a=A"},
	{name: "many empty layers", dockerfile: "FROM base\n" + lines(40, "ENV E%d=1\n") + "RUN env | wc -l > /n\n"},
	{name: "many stages", dockerfile: lines(20, "FROM base AS s%d\nCOPY a /a\n") + "FROM scratch\n" + lines(20, "COPY --from=s%[1]d /a /%[1]d\n"), files: "a=A", matters: "a"},
}, flags()...)

// tinyTar is the word that context replaces by an archive.
const tinyTar = "TAR"

const noXattrs = "BuildKit's layers have no extended attributes but capabilities"

func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "d/f%d=%d ", i, i)
	}
	return b.String()
}

func lines(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// flags are the ways to combine COPY's and ADD's flags.
func flags() (out []corpusCase) {
	for _, verb := range []string{"COPY", "ADD"} {
		for i := range 16 {
			var f []string
			for j, s := range []string{"--link", "--chown=3:4", "--chmod=u=rwX,g=rX,o=", "--exclude=**/*.x"} {
				if i&(1<<j) != 0 {
					f = append(f, s)
				}
			}
			if len(f) < 2 {
				continue
			}
			out = append(out, corpusCase{name: verb + " " + strings.Join(f, " "), files: "d/a=A d/b.x=B d/e/c=C:751",
				dockerfile: fmt.Sprintf("FROM scratch\n%s %s d /p/q/\n", verb, strings.Join(f, " "))})
		}
	}
	return out
}
