package image

import (
	"context"
	"io"

	"github.com/onggi/onggi/internal/errdefs"
)

// Push writes an image to its registry.
func (s *Service) Push(ctx context.Context, q PushRequest, report func(Progress)) (PushResult, error) {
	return PushResult{}, errdefs.Newf(errdefs.Unsupported, "push", q.Ref.Familiar(), "not written yet")
}

// Save writes images as an archive.
func (s *Service) Save(ctx context.Context, q SaveRequest, w io.Writer) error {
	return errdefs.Newf(errdefs.Unsupported, "save", "images", "not written yet")
}

// Load reads images from an archive.
func (s *Service) Load(ctx context.Context, q LoadRequest, r io.Reader, report func(Progress)) ([]Loaded, error) {
	return nil, errdefs.Newf(errdefs.Unsupported, "load", "images", "not written yet")
}
