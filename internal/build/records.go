package build

import (
	"encoding/json"

	"github.com/onggi/onggi/internal/build/refs"
	"github.com/onggi/onggi/internal/metadb"
)

// bucket is a bucket of the engine's records.
type bucket struct {
	db   *metadb.DB
	name string
}

var _ refs.Records = bucket{}

func (b bucket) Put(key string, v any) error {
	return b.db.Update(func(tx *metadb.Tx) error { return tx.Put(b.name, key, v) })
}

func (b bucket) Delete(key string) error {
	return b.db.Update(func(tx *metadb.Tx) error { return tx.Delete(b.name, key) })
}

// Each reads all records first, so that f may change them.
func (b bucket) Each(f func(key string, raw json.RawMessage) error) error {
	all := map[string]json.RawMessage{}
	err := b.db.View(func(tx *metadb.Tx) error {
		return tx.Each(b.name, func(key string, raw json.RawMessage) error { all[key] = raw; return nil })
	})
	if err != nil {
		return err
	}
	for k, raw := range all {
		if err := f(k, raw); err != nil {
			return err
		}
	}
	return nil
}
