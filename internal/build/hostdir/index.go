package hostdir

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"maps"
	"math"
	"slices"
	"time"

	digest "github.com/opencontainers/go-digest"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/onggi/onggi/internal/linux"
)

// item is what was known of a file when it was stored. All but its place stays.
type item struct {
	stat   *fstypes.Stat // as BuildKit sees it; not to be changed
	dev    uint64
	ino    uint64
	ctime  int64
	size   int64
	digest digest.Digest // of header and content, as BuildKit's content hash has it
	racy   bool          // it was changed so shortly before that its times cannot tell
	place  place         // where the file is now, if it was given away
}

// place is a file of a layer.
type place struct{ dir, path string }

// index is what a kept ref holds, by path.
type index map[string]*item

// settled is how old a change must be for a file's times to tell of the next
// one. File systems count in steps of up to two seconds.
const settled = 2 * time.Second

// unchanged reports that st describes the file that was stored.
func (it *item) unchanged(st *linux.Stat) bool {
	return !it.racy && it.dev == st.Dev && it.ino == st.Ino && it.size == st.Size &&
		it.ctime == st.Ctime.UnixNano() && it.stat.ModTime == st.Mtime.UnixNano() && it.stat.Mode == uint32(fileMode(st.Mode))
}

const indexVersion = 2

// marshal writes the index for a file of the engine's own.
func (x index) marshal() ([]byte, error) {
	out := []byte{indexVersion}
	for _, p := range slices.Sorted(maps.Keys(x)) {
		it := x[p]
		stat, err := it.stat.MarshalVT()
		if err != nil {
			return nil, err
		}
		sum, err := hex.DecodeString(it.digest.Encoded())
		if err != nil {
			return nil, err
		}
		racy := uint64(0)
		if it.racy {
			racy = 1
		}
		for _, n := range []uint64{it.dev, it.ino, uint64(it.ctime), uint64(it.size), racy} {
			out = binary.AppendUvarint(out, n)
		}
		for _, b := range [][]byte{stat, sum, []byte(it.place.dir), []byte(it.place.path)} {
			out = append(binary.AppendUvarint(out, uint64(len(b))), b...)
		}
	}
	return out, nil
}

var errTorn = errors.New("the index of a build context is torn")

// parseIndex reads what marshal wrote.
func parseIndex(b []byte) (index, error) {
	if len(b) == 0 || b[0] != indexVersion {
		return nil, errTorn
	}
	b = b[1:]
	torn := false
	number := func() uint64 {
		n, used := binary.Uvarint(b)
		if used <= 0 {
			torn, b = true, nil
			return 0
		}
		b = b[used:]
		return n
	}
	bytes := func() []byte {
		n := number()
		if n > uint64(len(b)) || n > math.MaxInt32 {
			torn, b = true, nil
			return nil
		}
		out := b[:n]
		b = b[n:]
		return out
	}
	x := index{}
	for len(b) > 0 {
		it := &item{stat: &fstypes.Stat{}, dev: number(), ino: number(), ctime: int64(number()), size: int64(number()), racy: number() == 1}
		stat, sum, dir, file := bytes(), bytes(), bytes(), bytes()
		if torn || it.stat.UnmarshalVT(stat) != nil || len(sum) != 32 {
			return nil, errTorn
		}
		it.digest, it.place = digest.NewDigestFromBytes(digest.SHA256, sum), place{string(dir), string(file)}
		x[it.stat.Path] = it
	}
	return x, nil
}
