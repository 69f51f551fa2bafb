package image

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/events"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
	"github.com/onggi/onggi/internal/snapshot"
)

// Buckets of metadb.
const (
	bucketImage = "image"
	bucketDoc   = "image.doc"
	bucketName  = "image.name"
	bucketLayer = "image.layer"
)

// record is what metadb keeps of an image. Unknown versions are not read.
type record struct {
	V          int              // 1
	origin                      // the latest
	Also       []origin         `json:",omitempty"` // other indexes that it belongs to
	Docs       []ocispec.Digest // the configuration and whatever else is kept for it
	Parent     string           `json:",omitempty"`
	Container  string           `json:",omitempty"`
	Added      time.Time
	LastTagged time.Time `json:",omitzero"`
}

// document is a small JSON text, or an attestation.
type document struct{ Data []byte }

// nameRecord says what a name means: an index, or one image.
type nameRecord struct {
	V     int            `json:",omitempty"` // 1; 0 knew images only
	ID    string         // the image that it meant when it was written
	Index ocispec.Digest `json:",omitempty"`
}

// layerRecord is what metadb keeps of a layer.
type layerRecord struct {
	V      int // 1
	DiffID ocispec.Digest
	Size   int64        // of the files
	Tar    int64        // of the tar, 0 if unknown
	Split  bool         `json:",omitempty"` // the exact tar can be made again
	Blobs  []blobRecord `json:",omitempty"`
}

// blobRecord is a compressed form of a layer that repositories have.
type blobRecord struct {
	Type   string
	Digest ocispec.Digest
	Size   int64
	Repos  []string // canonical names, the last used first
}

func (b blobRecord) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: b.Type, Digest: b.Digest, Size: b.Size}
}

// smallDoc is the size up to which documents are records: nearly all of them.
const smallDoc = 64 << 10

const maxRepos = 8 // that are remembered for one blob

// entry is an image in memory. It is replaced, never changed.
type entry struct {
	id     string
	rec    record
	config func() (ocispec.Image, error) // decoded at the first use
	chains func() []string               // its chain IDs, from the lowest layer's; also made once
}

// Service keeps the images of an engine.
type Service struct {
	o   Options
	log *slog.Logger

	mu     sync.RWMutex
	images map[string]*entry       // by ID; guarded by mu
	parts  map[string][]string     // index → IDs of its images that are here; guarded by mu
	names  map[string]string       // canonical name → target, an index or an ID; guarded by mu
	of     map[string][]string     // target → names; guarded by mu
	layers map[string]*layerRecord // by chain ID; values are immutable; guarded by mu
	pins   map[string]int          // chain ID → pulls and the like that need it; guarded by mu

	flights flights // of work on a chain ID
	loads   downloads
}

// New opens the store.
func New(o Options) (*Service, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Downloads == 0 {
		o.Downloads = 3
	}
	if o.Uploads == 0 {
		o.Uploads = 5
	}
	if o.MaxLayer == 0 {
		o.MaxLayer = 256 << 30
	}
	s := &Service{o: o, log: o.Logger, images: map[string]*entry{}, parts: map[string][]string{}, names: map[string]string{}, of: map[string][]string{}, layers: map[string]*layerRecord{}, pins: map[string]int{}}
	s.loads = downloads{open: map[ocispec.Digest]*download{}}
	for _, d := range []string{"", "split", "partial"} {
		if err := os.MkdirAll(filepath.Join(o.Dir, d), 0o700); err != nil {
			return nil, errdefs.New(errdefs.Internal, "open", "images in "+o.Dir, err)
		}
	}
	if err := o.DB.View(s.load); err != nil {
		return nil, err
	}
	if err := s.reconcile(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Service) load(tx *metadb.Tx) error {
	err := tx.Each(bucketImage, func(id string, raw json.RawMessage) error {
		var rec record
		if err := json.Unmarshal(raw, &rec); err != nil || rec.V != 1 {
			s.log.Warn("image record not understood", "image", id, "version", rec.V, "error", err)
			return nil
		}
		s.images[id] = s.newEntry(id, rec, nil)
		return nil
	})
	if err != nil {
		return err
	}
	for _, e := range s.images {
		s.joinLocked(e)
	}
	err = tx.Each(bucketName, func(name string, raw json.RawMessage) error {
		var rec nameRecord
		if err := json.Unmarshal(raw, &rec); err == nil {
			s.setNameLocked(name, s.readName(name, rec))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return tx.Each(bucketLayer, func(chain string, raw json.RawMessage) error {
		var rec layerRecord
		if err := json.Unmarshal(raw, &rec); err == nil && rec.V == 1 {
			s.layers[chain] = &rec
		}
		return nil
	})
}

// readName finds the target of a name's record, "" for none.
func (s *Service) readName(name string, rec nameRecord) string {
	e := s.images[rec.ID]
	if rec.V == 0 && e != nil {
		if _, d, ok := strings.Cut(name, "@"); !ok || d == e.rec.Index.Digest.String() {
			rec.Index = e.rec.Index.Digest // then it meant what its image came with
		}
	}
	switch {
	case len(s.parts[rec.Index.String()]) > 0:
		return rec.Index.String()
	case e != nil:
		return rec.ID
	}
	return ""
}

// reconcile compares the records with the snapshots that are there: after an
// unclean boot some may not be, and their images with them. Layers of no
// image, left by an interrupted pull, go.
func (s *Service) reconcile() error {
	if err := s.sweep(); err != nil {
		return err
	}
	var lost []string
	for id, e := range s.images {
		img, err := e.config()
		if err != nil {
			s.log.Error("image dropped: its configuration cannot be read", "image", id, "error", err)
			lost = append(lost, id)
			continue
		}
		chains := ocispec.ChainIDs(img.RootFS.DiffIDs)
		whole := true
		for _, c := range chains {
			if s.layers[c.String()] == nil || !s.exists(c.String()) {
				whole = false
			}
		}
		if !whole {
			s.log.Warn("image dropped: layers of it did not survive the last shutdown", "image", id, "names", s.heldLocked(e))
			lost = append(lost, id)
			continue
		}
	}
	for _, id := range lost {
		if err := s.forget(id); err != nil {
			return err
		}
	}
	s.Collect(context.Background())
	s.collectPartials(time.Now())
	return nil
}

// sweep removes what a crash left half done.
func (s *Service) sweep() error {
	err := s.o.Snapshots.Walk(func(i snapshot.Info) error {
		if !strings.HasPrefix(i.Name, activePrefix) {
			return nil
		}
		if err := s.o.Snapshots.Remove(context.Background(), i.Name); err != nil && !errdefs.Is(err, errdefs.NotFound) {
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	loads, _ := filepath.Glob(filepath.Join(s.o.Dir, "load-*"))
	for _, d := range loads {
		os.RemoveAll(d)
	}
	dir := filepath.Join(s.o.Dir, "split")
	list, err := os.ReadDir(dir)
	if err != nil {
		return errdefs.New(errdefs.Internal, "open", "images in "+s.o.Dir, err)
	}
	known := map[string]bool{}
	for c := range s.layers {
		known[hexOf(c)] = true
	}
	for _, f := range list {
		if !known[f.Name()] {
			os.Remove(filepath.Join(dir, f.Name()))
		}
	}
	return nil
}

func (s *Service) exists(chain string) bool {
	return s.o.Snapshots.Exists(chain)
}

func (s *Service) newEntry(id string, rec record, raw []byte) *entry {
	e := &entry{id: id, rec: rec}
	e.config = sync.OnceValues(func() (ocispec.Image, error) {
		if raw == nil {
			var err error
			if raw, err = s.doc(ocispec.Digest(id)); err != nil {
				return ocispec.Image{}, err
			}
		}
		img, err := ocispec.ParseImage(raw)
		raw = nil
		return img, err
	})
	e.chains = sync.OnceValue(func() []string {
		cfg, err := e.config()
		if err != nil {
			return nil
		}
		var out []string
		for _, c := range ocispec.ChainIDs(cfg.RootFS.DiffIDs) {
			out = append(out, c.String())
		}
		return out
	})
	return e
}

// doc reads a document that is kept.
func (s *Service) doc(d ocispec.Digest) ([]byte, error) {
	var doc document
	var ok bool
	err := s.o.DB.View(func(tx *metadb.Tx) (err error) {
		ok, err = tx.Get(bucketDoc, d.String(), &doc)
		return err
	})
	if err == nil && !ok && s.o.Content != nil {
		b, cerr := s.o.Content.Open(d)
		if cerr != nil {
			return nil, cerr
		}
		defer b.Close()
		return io.ReadAll(b.Reader())
	}
	if err == nil && !ok {
		err = errdefs.New(errdefs.NotFound, "read", "document "+d.String(), nil)
	}
	return doc.Data, err
}

// Doc reads a manifest, index, configuration or attestation of an image by its
// digest, as it came.
func (s *Service) Doc(d ocispec.Digest) ([]byte, error) { return s.doc(d) }

// ConfigBytes is an image's configuration as it came.
func (s *Service) ConfigBytes(nameOrID string) ([]byte, error) {
	s.mu.RLock()
	e, err := s.findLocked(nameOrID)
	s.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	return s.doc(ocispec.Digest(e.id))
}

// setNameLocked makes a name mean a target; "" takes it away. Preconditions:
// s.mu is held.
func (s *Service) setNameLocked(name, target string) {
	if old := s.names[name]; old != "" {
		s.of[old] = slices.DeleteFunc(slices.Clone(s.of[old]), func(n string) bool { return n == name })
		if len(s.of[old]) == 0 {
			delete(s.of, old)
		}
	}
	if target == "" {
		delete(s.names, name)
		return
	}
	s.names[name] = target
	list := append(slices.Clone(s.of[target]), name)
	slices.Sort(list)
	s.of[target] = list
}

// findLocked finds an image by name, ID, the beginning of an ID, or the digest
// of a manifest or index instead of an ID. Preconditions: s.mu is held.
func (s *Service) findLocked(nameOrID string) (*entry, error) {
	e, _, err := s.lookupLocked(nameOrID)
	return e, err
}

// lookupLocked is findLocked, and tells the target that was meant.
func (s *Service) lookupLocked(nameOrID string) (*entry, string, error) {
	byID := func(e *entry) (*entry, string, error) { return e, s.targetLocked(e), nil }
	none := func(err error) (*entry, string, error) { return nil, "", err }
	if e := s.images[nameOrID]; e != nil {
		return byID(e)
	}
	if reference.IsID(nameOrID) {
		if e := s.images["sha256:"+nameOrID]; e != nil {
			return byID(e)
		}
		return s.byDigestLocked(nameOrID, notFound(nameOrID, false))
	}
	if strings.HasPrefix(nameOrID, "sha256:") && reference.IsID(nameOrID[7:]) {
		return s.byDigestLocked(nameOrID, notFound(nameOrID, false))
	}
	ref, perr := reference.Parse(nameOrID)
	if perr == nil {
		target := s.byNameLocked(ref)
		if e := s.firstLocked(target); e != nil {
			return e, target, nil
		}
	}
	// The beginning of an ID, with or without its algorithm.
	prefix := strings.TrimPrefix(nameOrID, "sha256:")
	if prefix != "" && strings.Trim(prefix, "0123456789abcdef") == "" && len(prefix) < 64 {
		var found *entry
		for id, e := range s.images {
			if strings.HasPrefix(id[len("sha256:"):], prefix) {
				if found != nil {
					return none(errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "", "", "%s is the beginning of several image IDs", nameOrID), "give more digits"))
				}
				found = e
			}
		}
		if found != nil {
			return byID(found)
		}
	}
	if perr != nil {
		return s.byDigestLocked(nameOrID, perr)
	}
	return s.byDigestLocked(nameOrID, notFound(ref.OrLatest().Familiar(), true))
}

// byNameLocked finds the target of a name, "" for none.
func (s *Service) byNameLocked(ref reference.Ref) string {
	if ref.Digest == "" {
		return s.names[ref.OrLatest().String()]
	}
	// A tag beside a digest says nothing: the digest must be known in this
	// repository, whatever the tag there means today.
	by, _ := ref.WithDigest(ref.Digest)
	return s.names[by.String()]
}

func notFound(name string, pullable bool) error {
	err := errdefs.Newf(errdefs.NotFound, "", "", "No such image: %s", name)
	if pullable {
		err = errdefs.WithHint(err, "onggi pull "+name)
	}
	return err
}

// Get finds an image by name, name@digest, ID, or the beginning of an ID.
// Where a name has several platforms, it is the host's, else the first that
// came.
func (s *Service) Get(nameOrID string) (Image, error) { return s.GetFor(nameOrID, nil) }

// imageLocked describes an image, as part of a target. Preconditions: s.mu is
// held.
func (s *Service) imageLocked(e *entry, target string) (Image, error) {
	cfg, err := e.config()
	if err != nil {
		return Image{}, errdefs.New(errdefs.Internal, "read", "image "+e.id, err)
	}
	from := e.rec.under(target)
	img := Image{ID: e.id, Manifest: from.Manifest, Index: from.Index, Config: cfg, Added: e.rec.Added, LastTagged: e.rec.LastTagged, Parent: e.rec.Parent, Target: from.Index}
	if img.Target.Digest == "" {
		img.Target = img.Manifest
	}
	if cfg.Created != nil {
		img.Created = *cfg.Created
	}
	img.Chain = slices.Clone(e.chains())
	for _, c := range img.Chain {
		if l := s.layers[c]; l != nil {
			img.Size += l.Size
		}
	}
	if n := len(img.Chain); n > 0 {
		img.Snapshot = img.Chain[n-1]
	}
	for _, m := range s.membersLocked(target) {
		if m.id != e.id {
			img.Others = append(img.Others, m.id)
		}
	}
	img.RepoTags, img.RepoDigests = familiar(parseAll(s.heldLocked(e)))
	return img, nil
}

// put makes an image visible, under names, in one transaction. Its layers must
// be there, and durable.
type addition struct {
	id     string
	rec    record
	docs   map[ocispec.Digest][]byte
	names  []reference.Ref // tags and digests, of rec.Index or of the image
	layers map[string]*layerRecord
}

// target is what the names are to mean.
func (a addition) target() string {
	if a.rec.Index.Digest != "" {
		return a.rec.Index.Digest.String()
	}
	return a.id
}

func (s *Service) add(a addition) error {
	if err := s.putLargeDocs(a.docs); err != nil {
		return err
	}
	now := time.Now().UTC()
	a.rec.V = 1
	if a.rec.Added.IsZero() {
		a.rec.Added = now
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	tagged, target := false, a.target()
	for _, n := range a.names {
		tagged = tagged || n.Tag != "" && s.names[n.String()] != target
	}
	var old *entry
	if old = s.images[a.id]; old != nil {
		a.rec = merge(old.rec, a.rec)
	}
	if tagged {
		a.rec.LastTagged = now
	}
	for d := range a.docs {
		if !slices.Contains(a.rec.Docs, d) {
			a.rec.Docs = append(a.rec.Docs, d)
		}
	}
	slices.Sort(a.rec.Docs)
	err := s.o.DB.Update(func(tx *metadb.Tx) error {
		if err := tx.Put(bucketImage, a.id, a.rec); err != nil {
			return err
		}
		for d, b := range a.docs {
			if len(b) > smallDoc && s.o.Content != nil {
				continue // it is there already
			}
			if err := tx.Put(bucketDoc, d.String(), document{b}); err != nil {
				return err
			}
		}
		for c, l := range a.layers {
			if err := tx.Put(bucketLayer, c, l); err != nil {
				return err
			}
		}
		for _, n := range a.names {
			if err := putName(tx, n, a.id, target); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for c, l := range a.layers {
		s.layers[c] = l
	}
	if old != nil {
		e := *old
		e.rec = a.rec
		s.images[a.id] = &e
	} else {
		s.images[a.id] = s.newEntry(a.id, a.rec, a.docs[ocispec.Digest(a.id)])
	}
	s.joinLocked(s.images[a.id])
	for _, n := range a.names {
		s.setNameLocked(n.String(), target)
	}
	return nil
}

func putName(tx *metadb.Tx, n reference.Ref, id, target string) error {
	rec := nameRecord{V: 1, ID: id}
	if target != id {
		rec.Index = ocispec.Digest(target)
	}
	return tx.Put(bucketName, n.String(), rec)
}

// putLargeDocs writes the documents that are too large to be records.
func (s *Service) putLargeDocs(docs map[ocispec.Digest][]byte) error {
	for d, b := range docs {
		if len(b) <= smallDoc || s.o.Content == nil {
			continue
		}
		if _, err := s.o.Content.Has(d); err == nil {
			continue
		}
		w, err := s.o.Content.Writer(context.Background(), "image "+d.String(), ocispec.Descriptor{Digest: d, Size: int64(len(b))})
		if err != nil {
			return err
		}
		_, err = w.Write(b[w.Offset():])
		if err == nil {
			err = w.Commit(int64(len(b)), d)
		}
		w.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// merge keeps of an image that comes a second time what the first one knew.
func merge(old, add record) record {
	if add.Manifest.Digest == "" {
		add.origin, add.Also = old.origin, old.Also
	} else {
		for _, o := range old.origins() {
			if o.Index.Digest != add.Index.Digest {
				add.Also = append(add.Also, o)
			}
		}
	}
	for _, d := range old.Docs {
		if !slices.Contains(add.Docs, d) {
			add.Docs = append(add.Docs, d)
		}
	}
	if add.Parent == "" {
		add.Parent = old.Parent
	}
	add.Added, add.LastTagged = old.Added, old.LastTagged
	return add
}

// Tag gives an image a further name, taking it from another if need be.
func (s *Service) Tag(ctx context.Context, src string, ref reference.Ref) error {
	if ref.Digest != "" {
		return errdefs.Newf(errdefs.Invalid, "tag", ref.Familiar(), "refusing to create a tag with a digest reference")
	}
	switch ref.FamiliarName() {
	case "sha256", "sha384", "sha512":
		return errdefs.Newf(errdefs.Invalid, "", "", "refusing to create an ambiguous tag using digest algorithm as name")
	}
	ref = ref.OrLatest()
	s.mu.Lock()
	e, target, err := s.lookupLocked(src)
	if err == nil {
		err = s.nameLocked(ref, e, target)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.emit("tag", e.id, ref.Familiar())
	return nil
}

// nameLocked makes a tag mean a target. Preconditions: s.mu is held.
func (s *Service) nameLocked(ref reference.Ref, e *entry, target string) error {
	tagged := *e
	tagged.rec.LastTagged = time.Now().UTC()
	err := s.o.DB.Update(func(tx *metadb.Tx) error {
		if err := tx.Put(bucketImage, e.id, tagged.rec); err != nil {
			return err
		}
		return putName(tx, ref, e.id, target)
	})
	if err != nil {
		return err
	}
	s.images[e.id] = &tagged
	s.setNameLocked(ref.String(), target)
	return nil
}

func (s *Service) emit(action events.Action, id, name string) {
	if s.o.Events == nil {
		return
	}
	attrs := map[string]string{"name": name}
	s.mu.RLock()
	if e := s.images[id]; e != nil {
		if img, err := e.config(); err == nil {
			for k, v := range img.Config.Labels {
				if k != "name" {
					attrs[k] = v
				}
			}
		}
	}
	s.mu.RUnlock()
	s.o.Events.Emit(events.Image, action, id, attrs)
}

// splitPath is where the tar-split of a layer is.
func (s *Service) splitPath(chain string) string {
	return filepath.Join(s.o.Dir, "split", hexOf(chain))
}

func (s *Service) partialPath(d ocispec.Digest) string {
	return filepath.Join(s.o.Dir, "partial", hexOf(d.String()))
}

// hexOf makes a file name of a digest, whose form has been checked.
func hexOf(digest string) string {
	alg, enc, _ := strings.Cut(digest, ":")
	if _, err := hex.DecodeString(enc); err != nil {
		enc = hex.EncodeToString([]byte(enc)) // cannot be, and must not leave the directory
	}
	if alg == "sha256" {
		return enc
	}
	return alg + "-" + enc
}

// partialAge is how long the beginning of a blob is kept for a pull that may
// go on.
const partialAge = 7 * 24 * time.Hour

// collectPartials drops blobs whose pull nobody went on with.
func (s *Service) collectPartials(now time.Time) {
	dir := filepath.Join(s.o.Dir, "partial")
	list, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, f := range list {
		if i, err := f.Info(); err == nil && now.Sub(i.ModTime()) > partialAge {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				s.log.Warn("partial blob not removed", "file", f.Name(), "error", err)
			}
		}
	}
}

// DropPartials removes every partial blob that no pull is using, and returns
// how many bytes that freed.
func (s *Service) DropPartials() int64 {
	var freed int64
	dir := filepath.Join(s.o.Dir, "partial")
	list, _ := os.ReadDir(dir)
	s.loads.mu.Lock()
	defer s.loads.mu.Unlock()
	busy := map[string]bool{}
	for d := range s.loads.open {
		busy[hexOf(d.String())] = true
	}
	for _, f := range list {
		if busy[f.Name()] {
			continue
		}
		if i, err := f.Info(); err == nil && os.Remove(filepath.Join(dir, f.Name())) == nil {
			freed += i.Size()
		}
	}
	return freed
}

func short(d ocispec.Digest) string {
	enc := d.Encoded()
	return enc[:min(12, len(enc))]
}

func quote(id string) string { return fmt.Sprintf("image %q", id) }
