package metadb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A log starts with a header of headerSize bytes:
//
//	"onggi records\n"  version u32  salt u64  generation u64  crc32c of these u32
//
// and goes on with frames, each:
//
//	magic u32  length of payload u32  sequence u64  synced u64  crc32c u32  payload
//
// Numbers are little endian. The sum covers the frame without itself, and is
// seeded with the salt, so that no record's content can pass for a frame.
// synced is the last frame that was known to be on disk when this one was
// written. The payload is a kind and operations; strings have their length, as
// a varint, in front:
//
//	1  changes             (1 bucket key value | 2 bucket key)...
//	2  end of the snapshot that a compacted log starts with
//
// A log made by compaction is whole only if it has its kind 2.
const (
	version    = 1
	headerSize = 14 + 4 + 8 + 8 + 4
	frameHead  = 4 + 4 + 8 + 8 + 4
	frameMagic = 0x316c676f // "ogl1"

	maxFrame = 64 << 20
	maxValue = 32 << 20
	maxName  = 4 << 10

	kindChanges  = 1
	kindSnapshot = 2
	opPut        = 1
	opDelete     = 2
)

var (
	headerMagic = []byte("onggi records\n")
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)

	errNotALog  = errors.New("not a log of records")
	errTorn     = errors.New("torn or damaged")
	errPayload  = errors.New("a sound frame with content that this version does not understand")
	errTooLarge = fmt.Errorf("a change of more than %d bytes", maxFrame)
)

type header struct{ salt, generation uint64 }

func (h header) encode() []byte {
	b := append([]byte(nil), headerMagic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint64(b, h.salt)
	b = binary.LittleEndian.AppendUint64(b, h.generation)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeHeader(b []byte) (h header, err error) {
	if len(b) < headerSize || !bytes.HasPrefix(b, headerMagic) {
		return h, errNotALog
	}
	if v := binary.LittleEndian.Uint32(b[14:]); v != version {
		return h, fmt.Errorf("format %d; this version reads %d", v, version)
	}
	if crc32.Checksum(b[:headerSize-4], castagnoli) != binary.LittleEndian.Uint32(b[headerSize-4:]) {
		return h, errNotALog
	}
	return header{binary.LittleEndian.Uint64(b[18:]), binary.LittleEndian.Uint64(b[26:])}, nil
}

type frame struct {
	seq, synced uint64
	payload     []byte
}

// sum is the checksum of a frame's head, without the sum, and payload.
func (h header) sum(head, payload []byte) uint32 {
	var seed [16]byte
	binary.LittleEndian.PutUint64(seed[:], h.salt)
	binary.LittleEndian.PutUint64(seed[8:], h.generation)
	c := crc32.Update(0, castagnoli, seed[:])
	c = crc32.Update(c, castagnoli, head)
	return crc32.Update(c, castagnoli, payload)
}

// seal fills in the head of a frame whose payload is b[start+frameHead:].
func (h header) seal(b []byte, start int, seq, synced uint64) {
	f := b[start:]
	payload := f[frameHead:]
	binary.LittleEndian.PutUint32(f, frameMagic)
	binary.LittleEndian.PutUint32(f[4:], uint32(len(payload)))
	binary.LittleEndian.PutUint64(f[8:], seq)
	binary.LittleEndian.PutUint64(f[16:], synced)
	binary.LittleEndian.PutUint32(f[24:], h.sum(f[:24], payload))
}

// readFrame reads the frame at the start of b, and its whole length.
func (h header) readFrame(b []byte) (f frame, n int, err error) {
	if len(b) < frameHead || binary.LittleEndian.Uint32(b) != frameMagic {
		return f, 0, errTorn
	}
	size := int(binary.LittleEndian.Uint32(b[4:]))
	if size > maxFrame || size > len(b)-frameHead {
		return f, 0, errTorn
	}
	f = frame{binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:]), b[frameHead : frameHead+size]}
	if h.sum(b[:24], f.payload) != binary.LittleEndian.Uint32(b[24:]) {
		return f, 0, errTorn
	}
	return f, frameHead + size, nil
}

func appendString[T ~string | ~[]byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendOp(b []byte, o op) []byte {
	if o.value == nil {
		b = append(b, opDelete)
		return appendString(appendString(b, o.bucket), o.key)
	}
	b = append(b, opPut)
	return appendString(appendString(appendString(b, o.bucket), o.key), o.value)
}

func cutString(b []byte, limit int) (s, rest []byte, err error) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(limit) || n > uint64(len(b)-w) {
		return nil, nil, errPayload
	}
	return b[w : w+int(n) : w+int(n)], b[w+int(n):], nil
}

// decodeOps calls f with every operation of a payload of changes. The values
// are parts of p.
func decodeOps(p []byte, f func(op)) error {
	for len(p) > 0 {
		kind := p[0]
		bucket, rest, err := cutString(p[1:], maxName)
		if err != nil {
			return err
		}
		key, rest, err := cutString(rest, maxName)
		if err != nil {
			return err
		}
		o := op{bucket: string(bucket), key: string(key)}
		switch kind {
		case opDelete:
		case opPut:
			if o.value, rest, err = cutString(rest, maxValue); err != nil {
				return err
			}
		default:
			return errPayload
		}
		f(o)
		p = rest
	}
	return nil
}
